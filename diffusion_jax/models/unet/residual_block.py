"""The residual convolution block of diffusion UNets, told the time (arXiv 2006.11239, 2102.09672, 2105.05233)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.convolution import conv3x3, downsample_mean, pointwise, upsample_nearest
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.residual import add

Resample = Literal["none", "down", "up"]


def film(x: jax.Array, scale_shift: jax.Array) -> jax.Array:
    """Feature-wise modulation (arXiv 1709.07871): x (1 + scale) + shift.

    Args:
      x: [B, …, C] float32.
      scale_shift: [B, 2C] float32, scale first.

    Returns:
      [B, …, C] float32.
    """
    scale, shift = jnp.split(jnp.expand_dims(scale_shift, tuple(range(1, x.ndim - 1))), 2, axis=-1)  # [B, 1…, C]
    return x * (1 + scale) + shift


class ResBlock(nnx.Module):
    """Norm, SiLU, convolution, embedding, norm, SiLU, dropout, convolution; its shortcut alone at the start.

    Args:
      channels: channels of the input.
      features: channels of the output; where they differ the shortcut is a 1×1 convolution.
      embedding_width: E of the embedding.
      scale_shift: modulate the second norm by the embedding (ADM) instead of adding the embedding before it (DDPM).
      resample: change H and W by two, after the first SiLU and in the shortcut: "down" takes means, "up" repeats.
      groups: groups of both norms.
      eps: of both norms.
      dropout: probability that an activation before the last convolution is zeroed, 0 ≤ p < 1.
      dropout_stream: number of the block among those that are given the same keys.
      dtype: compute dtype of the convolutions; norms and embedding are float32.
      rngs: initialiser streams; the last convolution starts at zero.

    Raises:
      UserError: `groups` does not divide a width.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        embedding_width: int,
        *,
        scale_shift: bool,
        resample: Resample = "none",
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        dropout_stream: int = 0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.scale_shift, self.resample = scale_shift, resample
        self.dropout, self.dropout_stream = dropout, dropout_stream
        self.norm1 = GroupNorm(channels, groups=groups, eps=eps)
        self.conv1 = conv3x3(channels, features, dtype=dtype, rngs=rngs)
        modulation = 2 * features if scale_shift else features
        self.embedding = pointwise(embedding_width, modulation, dtype=jnp.dtype("float32"), rngs=rngs)
        self.norm2 = GroupNorm(features, groups=groups, eps=eps)
        self.conv2 = conv3x3(features, features, zero_init=True, dtype=dtype, rngs=rngs)
        self.shortcut = None if channels == features else pointwise(channels, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, embedding: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Applies the block.

        Args:
          x: [B, H, W, channels].
          embedding: [B, E] float32, the activated embedding SiLU(emb).
          keys: [B] keys, one per sample, of the dropout; None drops nothing.

        Returns:
          [B, H', W', features] in the dtype of x.
        """
        h = self._resample(jax.nn.silu(self.norm1(x)))  # [B, H', W', channels]
        x = self._resample(x)  # [B, H', W', channels]
        h = self.conv1(h).astype(jnp.float32)  # [B, H', W', features]
        modulation = self.embedding(embedding)  # [B, 2·features] or [B, features]
        h = film(self.norm2(h), modulation) if self.scale_shift else self.norm2(h + modulation[:, None, None])
        h = self.conv2(self._drop(jax.nn.silu(h), keys))
        shortcut = x if self.shortcut is None else self.shortcut(x).astype(jnp.float32)  # [B, H', W', features]
        return add(shortcut, h).astype(x.dtype)

    def _resample(self, x: jax.Array) -> jax.Array:
        if self.resample == "down":
            return downsample_mean(x)  # [B, H/2, W/2, C]
        return upsample_nearest(x) if self.resample == "up" else x  # [B, 2H, 2W, C]

    def _drop(self, h: jax.Array, keys: jax.Array | None) -> jax.Array:
        if keys is None or not self.dropout:
            return h
        keep = 1 - self.dropout

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.bernoulli(jax.random.fold_in(key, self.dropout_stream), keep, h.shape[1:])

        kept = jax.vmap(draw)(keys)  # [B, H', W', features]
        return jnp.where(kept, h / keep, 0)
