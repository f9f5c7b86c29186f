"""Activation functions that keep nothing but their argument for the backward pass."""

import math

import jax
import jax.numpy as jnp

from diffusion_jax.models.layers.remat import recomputed


def gelu(x: jax.Array, *, approximate: bool) -> jax.Array:
    """GELU, x Φ(x), computed in float32 (arXiv 1606.08415, §2).

    Args:
      x: of any floating dtype.
      approximate: the form with tanh, or the exact one.

    Returns:
      The shape and dtype of x.
    """

    def compute(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        if approximate:
            return jax.nn.gelu(wide, approximate=True).astype(x.dtype)
        # By erf as in PyTorch: erfc, by which JAX does it, takes a CPU more than twice as long.
        return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)

    return recomputed(compute)(x)
