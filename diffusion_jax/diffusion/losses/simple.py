"""The unweighted objective of DDPM."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Condition, Model
from diffusion_jax.diffusion.losses.base import Aux, LossBase, check_no_learned_variance, noised, predict
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.variational import mean_over_dims

Norm = Literal["l2", "l1"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleLoss(LossBase):
    """L_simple: the mean error of the prediction against its target (Ho et al. 2020, eq. 14).

    Attributes:
      norm: `l2` (squared error) or `l1` (absolute error; some LDM runs).

    Raises:
      UserError: unknown norm; when called, a prediction with learned variance, which this loss would never train.
    """

    norm: Norm = "l2"

    def __post_init__(self):
        super().__post_init__()
        check_choice("loss norm", self.norm, Norm)

    def check(self, path: Path, prediction: Prediction) -> None:
        super().check(path, prediction)
        check_no_learned_variance("simple", prediction)

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        point = path.point(time)
        output = predict(model, prediction, noised(x0, epsilon, point), point, cond)  # B, ..., C
        error = output - prediction.target(x0, epsilon, point)
        mse = mean_over_dims(error**2)
        loss = mse if self.norm == "l2" else mean_over_dims(jnp.abs(error))
        return loss, {"time": time, "mse": mse}
