"""Arrays created on the devices that hold their shards, by a function that makes them all."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import Mesh

from diffusion_jax.parallel.partition import PartitionRules, PyTree, make_shardings
from diffusion_jax.parallel.platform import platform

State = TypeVar("State")


def sharded_shapes(init: Callable[[], State], rules: PartitionRules, mesh: Mesh) -> State:
    """What `init` would make, with a sharded `jax.ShapeDtypeStruct` for each array."""
    state = jax.eval_shape(init)
    shardings = make_shardings(state, rules, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def shardings_of(abstract: PyTree) -> PyTree:
    """The shardings of a tree of sharded `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def create_sharded(init: Callable[[], State], abstract: State) -> State:
    """What `init` makes, each array created on the devices that hold its shards."""
    # The program runs once and draws every weight on its own: on a CPU, compiling it took longer than all it does, and
    # takes half as long at LLVM's first level of optimisation, for the same bits.
    options: dict[str, bool | int | str] = {"xla_backend_optimization_level": 1} if platform() == "cpu" else {}
    return jax.jit(init, out_shardings=shardings_of(abstract), compiler_options=options)()
