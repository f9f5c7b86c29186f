"""Normalisations of the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis in float32, without learned scale or bias (arXiv 1607.06450)."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


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
        x = layer_norm(x, self.eps)
        return x * self.scale[...] + self.bias[...] if self.affine else x


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
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps) * self.scale[...]
