"""Random keys as functions of (seed, purpose, step, sample index): the identity of a run.

Nothing here depends on devices, hosts, microbatches or restarts, so sample 17 of step 4000 sees the same noise on a
laptop and on a pod.
"""

import zlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def purpose_key(seed: ArrayLike, purpose: str, step: ArrayLike = 0) -> jax.Array:
    """The key of one purpose ("noise", "timestep", "label_drop", …) at one step.

    Args:
      seed: the run's seed, 0 ≤ seed < 2³², may be traced.
      purpose: a name; different names give independent streams.
      step: the training step or sampler step, scalar integer, may be traced.

    Returns:
      A scalar typed key.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def sample_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key per sample.

    Args:
      key: scalar key, from `purpose_key`.
      index: [B] integers, the global index of each sample, 0 ≤ index < 2³².

    Returns:
      [B] keys; element b depends on `key` and `index[b]` alone.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def normal(
    key: jax.Array, index: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """Standard normal noise whose row b depends on (`key`, `index[b]`) alone.

    Args:
      key: scalar key.
      index: [B] integers, global sample indices.
      shape: the shape of one sample, without the batch axis.
      dtype: floating type of the result.

    Returns:
      [B, *shape] array of `dtype`.
    """
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(sample_keys(key, index))


def uniform(key: jax.Array, index: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """[B] draws from U[0, 1); row b depends on (`key`, `index[b]`) alone (arguments as in `normal`)."""
    return jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(sample_keys(key, index))
