"""Objectives built on the variational bound."""

import dataclasses

import jax

from diffusion_jax.diffusion.denoiser import Condition, Model
from diffusion_jax.diffusion.losses.base import Aux, LossBase, noised, predict, training_ends
from diffusion_jax.diffusion.paths import DiscretePath, Path
from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.variational import mean_over_dims, vlb_term
from diffusion_jax.errors import UserError


def _check_bound(loss: str, path: Path, prediction: Prediction) -> None:
    if not isinstance(path, DiscretePath):
        raise UserError(
            f"loss '{loss}' sums over the steps of a discrete chain and path '{path.name}' has none; use 'ddpm'"
        )
    if prediction.kind in ("epsilon", "score") and path.point(training_ends(path)).alpha[-1] == 0:
        raise UserError(
            f"loss '{loss}' needs the predicted data at every step, of which prediction kind '{prediction.kind}' says "
            "nothing at the last one of a path with zero_terminal_snr; use prediction kind 'v' or 'x0'"
        )


def _vlb(
    prediction: Prediction, x0: Array, x: Array, mean: Array, variance_output: Array | None, path: Path, point: Point
) -> Array:
    """L_n at each sample's own n: [B] bits per dimension."""
    assert isinstance(path, DiscretePath)
    transition = path.transition(point.time)
    log_variance = prediction.log_variance(variance_output, align(transition, x))
    return vlb_term(x0, prediction.to_x0(mean, x, point), x, log_variance, transition)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridLoss(LossBase):
    """L_simple + vlb_weight · T · L_n, L_n with the mean prediction held constant (Nichol & Dhariwal 2021, eq. 16).

    The gradient of the bound reaches the variance output only. T is the length of the chain and n the drawn timestep,
    so with T = 1000 the default weighs L_n by 1, as DiT does.

    Attributes:
      vlb_weight: λ, the weight of the bound summed over all T steps.

    Raises:
      UserError: when called, a continuous path or a prediction without learned variance.
    """

    vlb_weight: float = 0.001

    def check(self, path: Path, prediction: Prediction) -> None:
        super().check(path, prediction)
        _check_bound("hybrid", path, prediction)
        if not prediction.learns_variance:
            raise UserError(
                f"loss 'hybrid' trains a learned variance and prediction variance '{prediction.variance}' has none; "
                "use loss 'simple', or variance 'learned_range'"
            )

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        point = path.point(time)
        x = noised(x0, epsilon, point)
        mean, variance_output = prediction.split(predict(model, prediction, x, point, cond))  # B, ..., C each
        mse = mean_over_dims((mean - prediction.target(x0, epsilon, point)) ** 2)
        vb = _vlb(prediction, x0, x, jax.lax.stop_gradient(mean), variance_output, path, point)
        assert path.chain_length is not None
        loss = mse + self.vlb_weight * path.chain_length * vb
        return loss, {"time": time, "mse": mse, "vb": vb}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLBLoss(LossBase):
    """The variational bound itself: L_n of the drawn n, or T · L_n, whose mean over n is the whole bound.

    Attributes:
      rescale: multiply by T.

    Raises:
      UserError: when called, a continuous path.
    """

    rescale: bool = True

    def check(self, path: Path, prediction: Prediction) -> None:
        super().check(path, prediction)
        _check_bound("vlb", path, prediction)

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        point = path.point(time)
        x = noised(x0, epsilon, point)
        mean, variance_output = prediction.split(predict(model, prediction, x, point, cond))  # B, ..., C each
        mse = mean_over_dims((mean - prediction.target(x0, epsilon, point)) ** 2)
        vb = _vlb(prediction, x0, x, mean, variance_output, path, point)
        assert path.chain_length is not None
        return (path.chain_length * vb if self.rescale else vb), {"time": time, "mse": mse, "vb": vb}
