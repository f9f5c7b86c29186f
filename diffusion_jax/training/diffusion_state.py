"""What a training run carries from step to step."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax.parallel.create import create_sharded, sharded_shapes
from diffusion_jax.runs.system import System


class TrainState(NamedTuple):
    """Everything a checkpoint holds.

    Attributes:
      step: int32 scalar, optimizer steps done; with the batch size it is also the position in the data.
      model: the backbone's parameters, float32.
      ema: their running average.
      optimizer: the optimizer's state.
      tracks: averages with power-function profiles, one for each of `train.ema_widths`.
      timesteps: what the timestep sampler remembers; None for uniform draws.
    """

    step: jax.Array
    model: Any
    ema: Any
    optimizer: Any
    tracks: tuple[Any, ...] = ()
    timesteps: Any = None

    def weights(self, params: Literal["ema", "raw"]) -> Any:
        """The averaged or the raw weights."""
        return self.ema if params == "ema" else self.model


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
        timesteps=system.initial_history(),
    )


def abstract_state(system: System, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state with a sharded `jax.ShapeDtypeStruct` for each array, by the partition rules of the backbone."""
    return sharded_shapes(lambda: init_state(system, optimizer), system.partition_rules, mesh)


def new_state(system: System, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The state before the first step, each array created on the devices that hold its shards."""
    return create_sharded(lambda: init_state(system, optimizer), abstract)
