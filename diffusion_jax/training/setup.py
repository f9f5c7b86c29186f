"""Making the state of a run: shapes first, then arrays created on their shards, new or from a checkpoint."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax.parallel.partition import PartitionRules, make_shardings
from diffusion_jax.parallel.platform import platform
from diffusion_jax.runs.system import System
from diffusion_jax.training.diffusion_state import TrainState

State = TypeVar("State")


def init_state(system: System, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; averages start as copies of the weights."""
    model = system.init_model()

    def copy() -> Any:
        return jax.tree.map(jnp.copy, model)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        model=model,
        ema=copy(),
        optimizer=optimizer.init(model),
        tracks=tuple(copy() for _ in system.train.ema_widths),
        timesteps=system.timesteps.init(system.path) if system.timesteps else None,
    )


def abstract_state(system: System, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state with a sharded `jax.ShapeDtypeStruct` for each array, by the partition rules of the backbone."""
    return sharded_shapes(lambda: init_state(system, optimizer), system.partition_rules, mesh)


def sharded_shapes(init: Callable[[], State], rules: PartitionRules, mesh: Mesh) -> State:
    """What `init` would make, with a sharded `jax.ShapeDtypeStruct` for each array."""
    state = jax.eval_shape(init)
    shardings = make_shardings(state, rules, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree of sharded `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def new_state(system: System, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The state before the first step, each array created on the devices that hold its shards."""
    return create_sharded(lambda: init_state(system, optimizer), abstract)


def create_sharded(init: Callable[[], State], abstract: State) -> State:
    """What `init` makes, each array created on the devices that hold its shards."""
    # The program runs once and draws every weight on its own: on a CPU, compiling it took longer than all it does, and
    # takes half as long at LLVM's first level of optimisation, for the same bits.
    options: dict[str, Any] = {"xla_backend_optimization_level": 1} if platform() == "cpu" else {}
    return jax.jit(init, out_shardings=shardings_of(abstract), compiler_options=options)()
