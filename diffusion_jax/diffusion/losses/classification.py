"""The objective of classifiers that guide: recognising noisy data."""

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.denoiser import Condition, Model, network
from diffusion_jax.diffusion.losses.base import Aux, LossBase, noised
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array
from diffusion_jax.diffusion.predictions import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationLoss(LossBase):
    """Cross-entropy of the class of x_t, at the times a diffusion model is trained at (Dhariwal & Nichol 2021, §4).

    The model answers [B, K] logits in place of a prediction. The condition must have a `label` [B] in 0…K−1, which the
    model is not shown. Diagnostics: `time` and `accuracy`.
    """

    def check(self, path: Path, prediction: Prediction) -> None:
        """Every path and prediction will do: only the noising counts."""

    def at(
        self, model: Model, path: Path, prediction: Prediction, x0: Array, cond: Condition, time: Array, epsilon: Array
    ) -> tuple[Array, Aux]:
        point = path.point(time)
        logits = network(model)(noised(x0, epsilon, point), point, cond._replace(label=None))  # B, K
        log_probabilities = jax.nn.log_softmax(logits)  # B, K
        wanted = jnp.take_along_axis(log_probabilities, cond.label[:, None], axis=1)[:, 0]  # B
        accuracy = (jnp.argmax(logits, axis=1) == cond.label).astype(x0.dtype)  # B
        return -wanted, {"time": time, "accuracy": accuracy}
