"""Text for IU-ViT and ASCEND: a sequence to attend to, and a part of the time embedding (arXiv 2212.13771)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.conditioning.parts import Conditioning, given_tokens, zero_dropped
from diffusion_jax.models.layers.norms import LayerNorm


class Text(NamedTuple):
    """The text of a batch, ready for cross-attention.

    Attributes:
      tokens: [B, M, W] float32, zero where a sample's text was dropped.
      mask: [B, M] bool, True where a token may be attended to; None allows all.
    """

    tokens: jax.Array
    mask: jax.Array | None


class TextFeatures(nnx.Module):
    """One norm shared by all that read the text, and a pooled vector that takes half of the time embedding.

    A sample whose `token_mask` is False throughout has its text dropped: tokens after the norm and the pooled vector
    after its projection are zero, so nothing of the text or of a bias is left. Training and sampling with
    classifier-free guidance see the same null condition.

    Args:
      token_width: width of `cond.tokens`.
      width: D of the time embedding, even.
      text_width: width W of the tokens attended to; where it is not `token_width`, a linear map comes first.
      mask_padding: leave masked tokens out of the mean and of attention; the published models attend to all.
      kernel_init: initialiser of the kernels.
      bias_init: initialiser of the biases.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        token_width: int,
        width: int,
        *,
        text_width: int | None = None,
        mask_padding: bool = False,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        text_width = text_width or token_width

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)

        self.mask_padding = mask_padding
        self.project = None if text_width == token_width else linear(token_width, text_width)
        self.norm = LayerNorm(text_width, eps=1e-5)
        self.pool = linear(text_width, width)
        self.time_half = linear(width, width // 2)
        self.text_half = linear(width, width // 2)

    def __call__(self, time_embedding: jax.Array, cond: Conditioning) -> tuple[jax.Array, Text]:
        """Prepares the text of a batch.

        Args:
          time_embedding: [B, D] float32.
          cond: its `tokens` [B, M, token_width], and `token_mask` [B, M] if there is one.

        Returns:
          The embedding of time and text [B, D] float32, and the text to attend to.

        Raises:
          ValueError: no tokens were given.
        """
        tokens = given_tokens(cond).astype(jnp.float32)  # [B, M, token_width]
        tokens = self.norm(tokens if self.project is None else self.project(tokens))  # [B, M, W]
        mask = cond.token_mask
        padding = mask if self.mask_padding else None
        weight = jnp.ones(tokens.shape[:2]) if padding is None else padding.astype(jnp.float32)  # [B, M]
        mean = jnp.einsum("bm,bmw->bw", weight, tokens) / jnp.maximum(weight.sum(1, keepdims=True), 1)  # [B, W]
        pooled = self.pool(mean)  # [B, D]
        tokens, pooled = zero_dropped(tokens, mask), zero_dropped(pooled, mask)  # [B, M, W], [B, D]
        halves = [self.time_half(time_embedding), self.text_half(pooled)]  # [B, D/2] each
        return jnp.concatenate(halves, axis=1), Text(tokens, padding)  # [B, D]
