"""Making the state of a run: shapes first, then arrays born on their shards, new or from a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax.parallel.partition import make_shardings
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.system import System


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
    state = jax.eval_shape(lambda: init_state(system, optimizer))
    shardings = make_shardings(state, system.partition_rules, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree of sharded `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def new_state(system: System, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The state before the first step, each array created on the devices that hold its shards."""
    return jax.jit(lambda: init_state(system, optimizer), out_shardings=shardings_of(abstract))()
