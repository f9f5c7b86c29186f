"""What every training objective offers."""

from typing import Any, Protocol

import jax

from diffusion_jax import keys
from diffusion_jax.diffusion.denoiser import Model
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.predictions import Prediction

Aux = dict[str, Array]


class Loss(Protocol):
    """A training objective."""

    def __call__(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Any, key: jax.Array, index: Array
    ) -> tuple[Array, Aux]:
        """Draws a time and noise for each sample and evaluates the objective there.

        Args:
          model: the network, (x, timestep [B], cond) -> raw output.
          path: the noising process.
          prediction: what the output means.
          x0: [B, ..., C] float32 data.
          cond: condition pytree, leaves [B, ...].
          key: scalar key of this training step.
          index: [B] global sample indices.

        Returns:
          [B] float32 losses and a dict of [B] float32 diagnostics: `time`, `mse`, for variational objectives `vb`
          (bits per dimension).
        """
        ...

    def at(
        self,
        model: Model,
        path: Path,
        prediction: Prediction,
        x0: Array,
        cond: Any,
        time: Array,
        epsilon: Array,
    ) -> tuple[Array, Aux]:
        """The objective at given `time` [B] and noise `epsilon` [B, ..., C]; otherwise as `__call__`."""
        ...

    def check(self, path: Path, prediction: Prediction) -> None:
        """Raises a `UserError` if the objective does not apply to this path and prediction."""
        ...


class LossBase:
    """Draws times and noise for objectives that define `at` and `check`."""

    def __call__(
        self: Loss, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Any, key: jax.Array, index: Array
    ) -> tuple[Array, Aux]:
        self.check(path, prediction)
        time_key, noise_key = jax.random.split(key)
        time = path.draw_time(time_key, index).astype(x0.dtype)  # B
        epsilon = keys.normal(noise_key, index, x0.shape[1:], x0.dtype)  # B, ..., C
        return self.at(model, path, prediction, x0, cond, time, epsilon)


def noised(x0: Array, epsilon: Array, point: Point) -> Array:
    """x = αx_0 + σε, the forward process at one point per sample."""
    point = align(point, x0)
    return point.alpha * x0 + point.sigma * epsilon
