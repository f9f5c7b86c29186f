"""Representation alignment: tokens are drawn towards features of the clean image (REPA, arXiv 2410.06940)."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.denoiser import Condition
from diffusion_jax.diffusion.losses.base import Aux, Loss, noised
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError


class Projecting(Protocol):
    """A network that can also give what its tokens say of patch features."""

    def project(self, x: Array, timestep: Array, cond: Condition) -> tuple[Array, Array]:
        """The raw output [B, ..., C_out], and tokens [B, N, Z]."""
        ...


def alignment(projected: Array, features: Array) -> Array:
    """−mean over tokens of the cosine between projected tokens and features.

    Args:
      projected: [B, N, Z] float.
      features: [B, N, Z] float patch features of the clean images, tokens in the same order; constants.

    Returns:
      [B] float32 in [−1, 1].

    Raises:
      UserError: the shapes differ.
    """
    if projected.shape != features.shape:
        raise UserError(
            f"features of shape {features.shape[1:]} cannot align {projected.shape[1]} tokens projected to "
            f"{projected.shape[2]}: resize the images of the extractor, or set model.repa_width"
        )
    projected, features = projected.astype(jnp.float32), features.astype(jnp.float32)

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)

    return -jnp.mean(jnp.sum(unit(projected) * unit(features), axis=-1), axis=-1)  # B


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentationAlignment:
    """Adds weight · `alignment` to a loss.

    Attributes:
      weight: λ; REPA finds 0.5 to 1 equally good and takes 0.5.

    Raises:
      UserError: a weight that is not positive.
    """

    weight: float = 0.5

    def __post_init__(self):
        if self.weight <= 0:
            raise UserError(f"alignment.weight={self.weight}: must be positive; alignment 'none' is without it")

    def at(
        self,
        loss: Loss,
        model: Projecting,
        path: Path,
        prediction: Prediction,
        x0: Array,
        cond: Condition,
        time: Array,
        epsilon: Array,
        features: Array,
    ) -> tuple[Array, Aux]:
        """The loss of one forward pass with its alignment.

        Args:
          loss: the training objective; it is told the output of the network, which runs once.
          model: the network.
          path: the noising process.
          prediction: what the output means.
          x0: [B, ..., C] float32 data.
          cond: condition pytree, leaves [B, ...].
          time: [B].
          epsilon: [B, ..., C] noise.
          features: [B, N, Z], see `alignment`.

        Returns:
          [B] float32 losses, and the diagnostics of the loss with `alignment` [B].
        """
        point = path.point(time)
        x, timestep = prediction.network_inputs(noised(x0, epsilon, point), point)  # B, ..., C and B
        output, projected = model.project(x, timestep.astype(x.dtype), cond)  # B, ..., C_out and B, N, Z
        value, aux = loss.at(lambda *_: output, path, prediction, x0, cond, time, epsilon)
        aligned = alignment(projected, features)  # B
        return value + self.weight * aligned, {**aux, "alignment": aligned}
