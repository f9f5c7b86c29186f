"""The SpatialTransformer of LDM: attention between pixels and to a context (arXiv 2112.10752, appendix E.2.1)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from diffusion_jax.models.layers.activations import gelu
from diffusion_jax.models.layers.convolution import UNIFORM_FAN_IN, pointwise, uniform
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.key_stream import KeyStream
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.scan_blocks import scan_blocks
from diffusion_jax.models.layers.transformer import CrossAttention, Linear, SelfAttention

_EPS = 1e-5


class GEGLU(nnx.Module):
    """Linear to two halves a and b, a · GELU(b) with the exact GELU, linear back (arXiv 2002.05202).

    Args:
      width: D; the hidden width is 4 D.
      dtype: compute dtype.
      rngs: initialiser streams; weights and biases uniform in ±1/√fan_in.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden = 4 * width
        linear = partial(Linear, kernel_init=UNIFORM_FAN_IN, dtype=dtype, rngs=rngs)
        self.fc1 = linear(width, (2, hidden), bias_init=uniform(width))
        self.fc2 = linear(hidden, width, bias_init=uniform(hidden))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the compute dtype."""
        halves = self.fc1(x)  # [..., 2, 4D]
        return self.fc2(halves[..., 0, :] * gelu(halves[..., 1, :], approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, attention to the context, GEGLU, each on a norm of its input and added to it.

    Args:
      width: D.
      heads: number of heads of both attentions.
      context_width: width of the context; None makes the second attention a self-attention too.
      dtype: compute dtype; norms are float32.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, heads: int, context_width: int | None, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init: dict[str, Any] = {
            "qkv_bias": False,
            "kernel_init": UNIFORM_FAN_IN,
            "bias_init": uniform(width),
            "dtype": dtype,
            "rngs": rngs,
        }
        self.norm1 = LayerNorm(width, eps=_EPS)
        self.attn1 = SelfAttention(width, heads, **init)
        self.norm2 = LayerNorm(width, eps=_EPS)
        self.attn2: Any
        if context_width is None:
            self.attn2 = SelfAttention(width, heads, **init)
        else:
            self.attn2 = CrossAttention(width, context_width, heads, **init)
        self.norm3 = LayerNorm(width, eps=_EPS)
        self.mlp = GEGLU(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array | None, mask: jax.Array | None = None) -> jax.Array:
        """Applies the block.

        Args:
          x: [B, N, D] tokens.
          context: [B, M, context_width]; None if the block has no context.
          mask: [B, M] bool, True where the context may be attended to; None allows all.

        Returns:
          [B, N, D] in the dtype of x.
        """
        x = add(x, self.attn1(self.norm1(x)))
        h = self.norm2(x)
        x = add(x, self.attn2(h) if context is None else self.attn2(h, context, mask))
        return add(x, self.mlp(self.norm3(x)))


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the pixels of a feature map, between 1×1 convolutions; the identity at the start.

    Args:
      channels: C, also the width of the tokens.
      heads: number of heads, a divisor of C.
      depth: number of blocks.
      context_width: width of the context; None for self-attention only.
      groups: groups of the norm.
      dtype: compute dtype; norms are float32.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        depth: int = 1,
        context_width: int | None = None,
        groups: int = 32,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def block(key: jax.Array) -> TransformerBlock:
            return TransformerBlock(channels, heads, context_width, dtype=dtype, rngs=KeyStream(key))

        self.norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.proj_in = pointwise(channels, channels, dtype=dtype, rngs=rngs)
        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
        self.proj_out = pointwise(channels, channels, zero_init=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        """Mixes the pixels of each image and adds what they read in the context.

        Args:
          x: [B, H, W, C].
          context: [B, M, context_width]; None if there is no context.
          mask: [B, M] bool, True where the context may be attended to; None allows all.

        Returns:
          [B, H, W, C] in the dtype of x.
        """
        tokens = rearrange(self.proj_in(self.norm(x)), "b h w c -> b (h w) c").astype(x.dtype)  # [B, N, C]

        def body(tokens: jax.Array, block: TransformerBlock) -> tuple[jax.Array, None]:
            return block(tokens, context, mask), None

        tokens, _ = scan_blocks(body, tokens, self.blocks, "none")
        h = self.proj_out(tokens).reshape(x.shape)  # [B, H, W, C]
        return add(x, h)
