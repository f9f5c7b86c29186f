"""The sum of a residual stream and what a block adds to it."""

import jax
import jax.numpy as jnp


def add(x: jax.Array, branch: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """x + gate · branch, computed in float32 and rounded once, to the residual dtype.

    Args:
      x: [B, ..., D] the stream, in the residual dtype.
      branch: [B, ..., D] what a layer made of it, of any floating dtype.
      gate: [B, D] float32, the same for all tokens or pixels of a sample; None is one.

    Returns:
      [B, ..., D] in the dtype of x.
    """
    branch = branch.astype(jnp.float32)  # [B, ..., D]
    if gate is not None:
        branch = jnp.expand_dims(gate, tuple(range(1, x.ndim - 1))) * branch  # [B, ..., D]
    return (x.astype(jnp.float32) + branch).astype(x.dtype)
