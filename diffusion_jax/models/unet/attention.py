"""Attention between the pixels of a UNet, and its pooling to one vector (arXiv 2105.05233)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from diffusion_jax.models.layers.attention import attention
from diffusion_jax.models.layers.convolution import UNIFORM_FAN_IN, pointwise, uniform
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.transformer import Linear, SelfAttention


class AttentionBlock(nnx.Module):
    """Norm and self-attention between pixels, added to the input; the identity at the start.

    Args:
      channels: C.
      heads: number of heads, a divisor of C.
      groups: groups of the norm.
      eps: of the norm.
      dtype: compute dtype; the norm is float32.
      rngs: initialiser streams; the output projection starts at zero.
    """

    def __init__(
        self, channels: int, heads: int, *, groups: int = 32, eps: float = 1e-5, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=eps)
        self.attn = SelfAttention(
            channels,
            heads,
            kernel_init=UNIFORM_FAN_IN,
            bias_init=uniform(channels),
            zero_proj=True,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C] in the dtype of x."""
        h = self.attn(rearrange(self.norm(x), "b h w c -> b (h w) c")).reshape(x.shape)  # [B, H, W, C]
        return add(x, h)


class AttentionPool(nnx.Module):
    """What the mean of all pixels reads in them by attention: a feature map becomes one vector (arXiv 2103.00020).

    Args:
      pixels: N = H·W of the feature map.
      channels: C.
      heads: number of heads, a divisor of C.
      features: width of the result.
      dtype: compute dtype.
      rngs: initialiser streams; positions ~ N(0, 1/C).
    """

    def __init__(self, pixels: int, channels: int, heads: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        positions = jax.random.normal(rngs.params(), (pixels + 1, channels)) / channels**0.5
        self.positions = nnx.Param(positions)
        self.qkv = Linear(
            channels,
            (3, heads, channels // heads),
            kernel_init=UNIFORM_FAN_IN,
            bias_init=uniform(channels),
            dtype=dtype,
            rngs=rngs,
        )
        self.proj = pointwise(channels, features, dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, features] float32."""
        pixels = rearrange(x, "b h w c -> b (h w) c").astype(jnp.float32)  # [B, N, C]
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)  # [B, N + 1, C]
        qkv = self.qkv(tokens + self.positions[...])  # [B, N + 1, 3, heads, d]
        pooled = attention(qkv[:, :1, 0], qkv[:, :, 1], qkv[:, :, 2])  # [B, 1, heads, d]
        return self.proj(rearrange(pooled, "b 1 h d -> b (h d)"))  # [B, features]
