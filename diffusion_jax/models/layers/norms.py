"""Normalisations of the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.remat import recomputed


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis in float32, without learned scale or bias (arXiv 1607.06450)."""

    def normalise(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)

    return recomputed(normalise)(x)


class LayerNorm(nnx.Module):
    """`layer_norm` with a learned scale, one at first, and bias, zero at first.

    Args:
      width: D of the last axis.
      eps: added to the variance.
      affine: whether there are scale and bias at all.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True):
        self.eps = eps
        self.affine = affine
        if affine:
            self.scale = nnx.Param(jnp.ones(width))
            self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] of any floating dtype to [..., D] float32."""
        if not self.affine:
            return layer_norm(x, self.eps)
        compute = recomputed(lambda x, scale, bias: layer_norm(x, self.eps) * scale + bias)
        return compute(x, self.scale[...], self.bias[...])


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + eps) with a learned scale, one at first (arXiv 1910.07467).

    Args:
      width: D of the last axis.
      eps: added to the mean square.
    """

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] of any floating dtype to [..., D] float32."""

        def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps) * scale

        return recomputed(normalise)(x, self.scale[...])
