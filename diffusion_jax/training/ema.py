"""The running average of the weights that samples are drawn from."""

from typing import TypeVar

import jax

Tree = TypeVar("Tree")


def ema_update(ema: Tree, params: Tree, decay: float | jax.Array) -> Tree:
    """One step of the exponential moving average, ema ← decay · ema + (1 − decay) · params (arXiv 2006.11239).

    Args:
      ema: the average, any pytree of float arrays.
      params: the new weights, same structure.
      decay: 0 ≤ decay ≤ 1, scalar; see `ema_profiles` for how it may change with the step.

    Returns:
      The new average.
    """
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
