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
    """

    step: jax.Array
    model: Any
    ema: Any
    optimizer: Any
