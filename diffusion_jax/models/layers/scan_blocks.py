"""A stack of equal blocks, one after another."""

from collections.abc import Callable
from typing import TypeVar

import jax

from diffusion_jax.models.layers.remat import RematPolicy, remat
from diffusion_jax.parallel.partition import PyTree
from diffusion_jax.parallel.platform import on_one_cpu

# Compiling takes 0.7 s more a block, which a deep stack, wide as those are, does not win back.
MOST_UNROLLED = 12

Carry = TypeVar("Carry")


def scan_blocks(body: Callable, carry: Carry, blocks: PyTree, policy: RematPolicy) -> tuple[Carry, PyTree]:
    """Runs the blocks of a stack in order, as `jax.lax.scan` does.

    Args:
      body: of what the last block handed on and this block's slice of `blocks`; gives what it hands on, of the same
        shapes and dtypes, and its output or None.
      carry: what the first block is handed.
      blocks: a tree of arrays [depth, ...] and modules of such.
      policy: what the backward pass keeps and what it computes again, as in `remat`.

    Returns:
      What the last block hands on, and the outputs [depth, ...] of all.
    """
    # A CPU spends up to a sixth of its time on copying what a loop hands from its forward to its backward pass. Under
    # remat there is little of that, and without a loop XLA would merge recomputation and forward pass.
    depth = len(jax.tree.leaves(blocks)[0])
    unroll = policy == "none" and on_one_cpu() and depth <= MOST_UNROLLED
    return jax.lax.scan(remat(body, policy), carry, blocks, unroll=unroll)
