"""Squared errors weighted by the noise level."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Condition, Model
from diffusion_jax.diffusion.losses.base import (
    Aux,
    LossBase,
    TimeLaw,
    check_no_learned_variance,
    noised,
    predict,
    training_ends,
)
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point, namespace
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.variational import mean_over_dims
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedLoss(LossBase):
    """weight(t) · mean squared error of the prediction; a subclass gives the weight in its prediction's own space."""

    name: ClassVar[str]

    def weight(self, point: Point, prediction: Prediction) -> Array:
        """[B] weights of the squared error of the network's output, anywhere inside the path."""
        raise NotImplementedError

    def end_weight(self, point: Point, prediction: Prediction) -> Array:
        """`weight` in another form, for an end of the path where `weight` is 0 · ∞ and the product finite."""
        return self.weight(point, prediction)

    def weights(self, path: Path, point: Point, prediction: Prediction) -> Array:
        """[B] weights at points of training, its ends included."""
        weight = self.weight(point, prediction)
        with np.errstate(all="ignore"):
            if np.all(np.isfinite(self.weight(path.point(training_ends(path)), prediction))):
                return weight
        xp = namespace(weight)
        return xp.where(xp.isfinite(weight), weight, self.end_weight(point, prediction))

    def check(self, path: Path, prediction: Prediction) -> None:
        super().check(path, prediction)
        check_no_learned_variance(self.name, prediction)
        ends = training_ends(path)
        with np.errstate(all="ignore"):
            weights = np.asarray(self.weights(path, path.point(ends), prediction))
        if not np.all(np.isfinite(weights)):
            raise UserError(
                f"loss '{self.name}' weighs prediction kind '{prediction.kind}' infinitely at an end of path "
                f"'{path.name}', t from {ends[0]:g} to {ends[1]:g}; set its train_time_min above 0 or time_max below 1"
            )

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        point = path.point(time)
        output = predict(model, prediction, noised(x0, epsilon, point), point, cond)  # B, ..., C
        mse = mean_over_dims((output - prediction.target(x0, epsilon, point)) ** 2)
        return self.weights(path, point, prediction) * mse, {"time": time, "mse": mse}


def likelihood_weight(point: Point) -> Array:
    """αδ/σ³ on the squared error of x̂_0, the same as δ/(ασ) on that of ε̂."""
    return point.alpha * point.delta / point.sigma**3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNRLoss(WeightedLoss):
    """min(SNR, γ) on the squared error of x̂_0, whatever the network predicts (Hang et al. 2023).

    On ε that is min(SNR, γ)/SNR, on v min(SNR, γ)/(SNR + 1); where no signal is left the weight is 1.

    Attributes:
      gamma: γ; 5 for the hard minimum, 4 for the soft one.
      soft: γ·SNR/(γ + SNR) in place of the minimum (Crowson et al. 2024).
    """

    gamma: float = 5.0
    soft: bool = False
    name: ClassVar[str] = "min_snr"

    def weight(self, point: Point, prediction: Prediction) -> Array:
        xp = namespace(point.snr)
        # The soft form through 1/SNR, so that neither end of the path gives inf/inf.
        soft, hard = 1 / (point.kappa**2 + 1 / self.gamma), xp.minimum(point.snr, self.gamma)
        data_weight = soft if self.soft else hard
        silent = point.snr == 0
        factor = xp.where(silent, 1.0, prediction.x0_error_factor(point))
        return xp.where(silent, 1.0, data_weight * factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class P2Loss(WeightedLoss):
    """1/(k + SNR)^γ on the squared error of ε̂ (Choi et al. 2022).

    Attributes:
      gamma: γ, published with 0.5 and 1.
      k: k.
    """

    gamma: float = 1.0
    k: float = 1.0
    name: ClassVar[str] = "p2"

    def weight(self, point: Point, prediction: Prediction) -> Array:
        return prediction.epsilon_error_factor(point) / (self.k + point.snr) ** self.gamma

    def end_weight(self, point: Point, prediction: Prediction) -> Array:
        # At clean data SNR/(k + SNR)^γ, the weight of x̂_0, is SNR^{1 − γ}.
        return prediction.x0_error_factor(point) * point.kappa ** (2 * (self.gamma - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreLoss(WeightedLoss):
    """Denoising score matching: σ² or g² on the squared error of the score (Song et al. 2021, eq. 7).

    Attributes:
      weighting: `noise` (σ², the same as the squared error of ε̂) or `likelihood` (g², whose integral bounds the
        negative log-likelihood).
    """

    weighting: Literal["noise", "likelihood"] = "noise"
    name: ClassVar[str] = "score"

    def __post_init__(self):
        super().__post_init__()
        check_choice("loss weighting", self.weighting, Literal["noise", "likelihood"])

    def weight(self, point: Point, prediction: Prediction) -> Array:
        noise_error = prediction.epsilon_error_factor(point)  # |Δs|² = |Δε|²/σ²
        return noise_error if self.weighting == "noise" else noise_error * point.diffusion / point.sigma**2

    def end_weight(self, point: Point, prediction: Prediction) -> Array:
        if self.weighting == "noise":
            return prediction.epsilon_error_factor(point)
        return 2 * likelihood_weight(point) * prediction.x0_error_factor(point)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMLoss(WeightedLoss):
    """(κ² + σ_d²)/(κσ_d)² on the squared error of x̂_0, κ log-normal (Karras et al. 2022, table 1).

    With prediction `edm` it is 1 per dimension at the initialisation. With learned uncertainty it is e^{−a} times that,
    plus a (EDM2, eq. 14), where a = `model.uncertainty(c_noise [B]) -> [B]`; see `LearnedUncertainty`.

    Attributes:
      sigma_data: σ_d.
      learned_uncertainty: whether the model carries a(κ).
    """

    time_law: TimeLaw = "edm"
    time_mean: float = -1.2
    time_std: float = 1.2
    sigma_data: float = 0.5
    learned_uncertainty: bool = False
    name: ClassVar[str] = "edm"

    def weight(self, point: Point, prediction: Prediction) -> Array:
        # On x̂_0 where noise dominates and on ε̂ where data do, so that no end of a path gives 0 · ∞.
        on_data = (1 / self.sigma_data**2 + 1 / point.kappa**2) * prediction.x0_error_factor(point)
        on_noise = (1 + (point.kappa / self.sigma_data) ** 2) * prediction.epsilon_error_factor(point)
        return namespace(point.kappa).where(point.kappa < 1, on_noise, on_data)

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        loss, aux = super().at(model, path, prediction, x0, cond, time, epsilon)
        if not self.learned_uncertainty:
            return loss, aux
        uncertainty = getattr(model, "uncertainty", None)
        if uncertainty is None:
            raise UserError(
                "loss 'edm' with learned_uncertainty needs a model that carries one; wrap it in LearnedUncertainty, "
                "or set learned_uncertainty False"
            )
        a = uncertainty(jnp.log(path.point(time).kappa) / 4).astype(loss.dtype)  # B
        return loss * jnp.exp(-a) + a, aux | {"weighted_mse": loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchingLoss(WeightedLoss):
    """Flow matching: the squared error of the velocity (Lipman et al. 2023; SiT, Ma et al. 2024).

    Attributes:
      weighting: weight of the squared error of ε̂: `velocity` (δ/α)², which makes it the error of the velocity whatever
        the network predicts; `likelihood` δ/(ασ), ½g² on the score; `noise` 1.
      direction_weight: weight of 1 − cos(û, u), the cosine over channels (FasterDiT); 0 is off.
      sigma_floor: smallest σ by which `velocity` divides the error of x̂_0, which bounds its weight (δ/σ)² near the data
        (JiT takes 0.05, arXiv 2511.13720); 0 for none.

    Raises:
      UserError: a negative floor, or one for another weighting; when called, a direction term for a network that does
        not predict the velocity, or a floor for one that does not predict x0.
    """

    weighting: Literal["velocity", "likelihood", "noise"] = "velocity"
    direction_weight: float = 0.0
    sigma_floor: float = 0.0
    name: ClassVar[str] = "flow_matching"

    def __post_init__(self):
        super().__post_init__()
        check_choice("loss weighting", self.weighting, Literal["velocity", "likelihood", "noise"])
        if self.sigma_floor < 0 or (self.sigma_floor and self.weighting != "velocity"):
            raise UserError(
                f"loss 'flow_matching': sigma_floor={self.sigma_floor} must be at least 0, and is of weighting "
                "'velocity' alone"
            )

    def check(self, path: Path, prediction: Prediction) -> None:
        if self.direction_weight and prediction.kind != "velocity":
            raise UserError(
                f"loss 'flow_matching': direction_weight compares velocities and the network predicts "
                f"'{prediction.kind}'; use prediction kind 'velocity'"
            )
        if self.sigma_floor and prediction.kind != "x0":
            raise UserError(
                f"loss 'flow_matching': sigma_floor bounds the weight of x0 and the network predicts "
                f"'{prediction.kind}'; use prediction kind 'x0', or sigma_floor 0"
            )
        super().check(path, prediction)

    def weight(self, point: Point, prediction: Prediction) -> Array:
        if self.weighting == "velocity" and prediction.kind == "velocity":
            return namespace(point.time).ones_like(point.time)  # at both ends of the path too
        noise_error = prediction.epsilon_error_factor(point)
        if self.weighting == "velocity":
            if self.sigma_floor:
                return (point.delta / namespace(point.sigma).maximum(point.sigma, self.sigma_floor)) ** 2
            return noise_error * (point.delta / point.alpha) ** 2
        if self.weighting == "likelihood":
            return noise_error * point.delta / (point.alpha * point.sigma)
        return noise_error

    def end_weight(self, point: Point, prediction: Prediction) -> Array:
        if self.weighting == "noise":
            return prediction.epsilon_error_factor(point)
        # |Δu| = δ/α |Δε| = δ/σ |Δx_0|
        of_data = likelihood_weight(point) if self.weighting == "likelihood" else (point.delta / point.sigma) ** 2
        return of_data * prediction.x0_error_factor(point)

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        if not self.direction_weight:
            return super().at(model, path, prediction, x0, cond, time, epsilon)
        point = path.point(time)
        output = predict(model, prediction, noised(x0, epsilon, point), point, cond)  # B, ..., C
        target = prediction.target(x0, epsilon, point)
        mse = mean_over_dims((output - target) ** 2)
        # The small number bounds the gradient at the zero output that a new network gives.
        squares = jnp.sum(output**2, axis=-1) * jnp.sum(target**2, axis=-1)
        cosine = jnp.sum(output * target, axis=-1) * jax.lax.rsqrt(squares + 1e-6)  # B, ...
        direction = mean_over_dims(1 - cosine)
        loss = self.weights(path, point, prediction) * mse + self.direction_weight * direction
        return loss, {"time": time, "mse": mse, "direction": direction}
