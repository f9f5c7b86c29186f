"""Rematerialisation policies by name: what a block keeps for its backward pass."""

from collections.abc import Callable
from typing import Literal

import jax

RematPolicy = Literal["none", "dots", "full"]


def remat(function: Callable, policy: RematPolicy, *, in_scan: bool = True) -> Callable:
    """Wraps a block in `jax.checkpoint`.

    Args:
      function: the block, or the body of a scan over blocks.
      policy: `"none"` keeps every intermediate (fastest, most memory); `"dots"` keeps the results of matrix products
        with weights and recomputes attention, norms and activations; `"full"` keeps only the block's input.
      in_scan: whether `function` is the body of a scan.

    Returns:
      A function of the same signature and value.
    """
    if policy == "none":
        return function
    saveable = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }[policy]
    # Inside a scan XLA cannot merge the recomputation with the forward pass, so the barrier against it only costs.
    return jax.checkpoint(function, policy=saveable, prevent_cse=not in_scan)


def recomputed(function: Callable) -> Callable:
    """Cheap arithmetic whose backward pass computes it again: only its arguments are kept, not what comes between.

    For norms, activations and the like, whose intermediates are as large as their arguments and take longer to write to
    memory and read again, out of a scan most of all, than to compute.

    Args:
      function: of arrays and modules.

    Returns:
      A function of the same signature and value.
    """
    # Outside a scan XLA may merge both computations, and does so where it is the faster way: no barrier against it.
    return jax.checkpoint(function, prevent_cse=False)
