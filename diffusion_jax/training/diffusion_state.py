"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax


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
