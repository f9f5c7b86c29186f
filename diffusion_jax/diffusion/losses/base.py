"""What every training objective offers."""

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Condition, Model, network
from diffusion_jax.diffusion.grids import shift_time
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError

Aux = dict[str, Array]
TimeLaw = Literal["uniform", "logit_normal", "edm"]


class Loss(Protocol):
    """A training objective."""

    def __call__(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, key: jax.Array, index: Array
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
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        """The objective at given `time` [B] and noise `epsilon` [B, ..., C]; otherwise as `__call__`."""
        ...

    def check(self, path: Path, prediction: Prediction) -> None:
        """Raises a `UserError` if the objective does not apply to this path and prediction."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossBase:
    """The law of the training times, common to all objectives; a discrete chain takes its nearest timestep.

    Attributes:
      time_law: `uniform` between the path's training times; `logit_normal`, t = sigmoid(m + s n) (Esser et al. 2024);
        `edm`, κ = exp(m + s n), which is the same on the linear path (Karras et al. 2022).
      time_mean: m; EDM −1.2 for pixels, EDM2 −0.4 for latents.
      time_std: s; EDM 1.2, EDM2 1.0.
      time_shift: a of t' = a t/(1 + (a − 1) t), applied last; above 1 for more noise.

    Raises:
      UserError: an unknown law or a value outside its range.
    """

    time_law: TimeLaw = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0

    def __post_init__(self):
        check_choice("loss time_law", self.time_law, TimeLaw)
        if self.time_std <= 0 or self.time_shift <= 0:
            raise UserError(
                f"loss: time_std and time_shift must be positive, not {self.time_std} and {self.time_shift}"
            )

    def draw_time(self, path: Path, key: jax.Array, index: Array) -> Array:
        """[B] float32 training times; row b depends on (`key`, `index[b]`) alone."""
        if self.time_law == "uniform":
            time = path.draw_time(key, index)
        else:
            exponent = self.time_mean + self.time_std * keys.normal(key, index, ())  # B
            time = (
                jax.nn.sigmoid(exponent) if self.time_law == "logit_normal" else path.time_of_kappa(jnp.exp(exponent))
            )
        if self.time_law == "uniform" and self.time_shift == 1:
            return time
        return path.nearest_trained(shift_time(time, self.time_shift))

    def __call__(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, key: jax.Array, index: Array
    ) -> tuple[Array, Aux]:
        self.check(path, prediction)
        time_key, noise_key = jax.random.split(key)
        time = self.draw_time(path, time_key, index).astype(x0.dtype)  # B
        epsilon = keys.normal(noise_key, index, x0.shape[1:], x0.dtype)  # B, ..., C
        return self.at(model, path, prediction, x0, cond, time, epsilon)

    def check(self, path: Path, prediction: Prediction) -> None:
        """Raises a `UserError` if the objective does not apply to this path and prediction."""
        ends = path.point(training_ends(path))
        infinite = ends.sigma[0] == 0 if prediction.kind in ("score", "edm") else False
        if infinite or (prediction.kind == "velocity" and not np.isfinite(ends.sigma_dot[0])):
            raise UserError(
                f"loss: the target of prediction kind '{prediction.kind}' is infinite without noise, and path "
                f"'{path.name}' trains down to t = 0; set its train_time_min above 0"
            )
        if prediction.kind == "edm" and ends.alpha[-1] == 0:
            raise UserError(
                f"loss: the time ¼ ln(σ/α) of prediction kind 'edm' is infinite without signal, and path '{path.name}' "
                f"trains up to t = {ends.time[-1]:g}, where none is left; set its time_max below 1, or its "
                "zero_terminal_snr False"
            )

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        """The objective at given times and noise."""
        raise NotImplementedError


def training_ends(path: Path) -> Array:
    """[2] float64, the smallest and the largest time that training may draw."""
    return path.nearest_trained(np.array([0.0, 1.0]))


def noised(x0: Array, epsilon: Array, point: Point) -> Array:
    """x = αx_0 + σε, the forward process at one point per sample."""
    point = align(point, x0)
    return point.alpha * x0 + point.sigma * epsilon


def predict(model: Model, prediction: Prediction, x: Array, point: Point, cond: Condition) -> Array:
    """The raw output [B, ..., C_out] of the network at x [B, ..., C]."""
    network_x, network_time = prediction.network_inputs(x, point)
    return network(model)(network_x, point._replace(timestep=network_time), cond)


def check_no_learned_variance(name: str, prediction: Prediction) -> None:
    """Raises a `UserError` for a variance output that the objective would never train."""
    if prediction.learns_variance:
        raise UserError(
            f"loss '{name}' never trains the variance output of prediction variance '{prediction.variance}'; "
            "use loss 'hybrid', or variance 'fixed_small'"
        )
