"""A learned uncertainty for the EDM loss (EDM2, Karras et al. 2024b, section 3.1 and appendix B)."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax.diffusion.denoiser import Condition, Model
from diffusion_jax.diffusion.point import Array


class LearnedUncertainty(nnx.Module):
    """A backbone with a(κ), the logarithm of the loss that is expected at each noise level.

    Calls go to the backbone. The uncertainty is linear in fixed Fourier features of c_noise, zero at first.

    Args:
      model: the backbone.
      channels: number of features.
    """

    def __init__(self, model: Model, channels: int = 128):
        self.model = model
        self.weight = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, timestep: Array, cond: Condition) -> Array:
        return self.model(x, timestep, cond)

    def uncertainty(self, c_noise: Array) -> Array:
        """a at ¼ ln κ: [B] -> [B]."""
        # Constants of the method, the same for every model: the features are not trained.
        rng = np.random.default_rng(0)
        channels = self.weight.shape[0]
        frequencies = jnp.asarray(2 * math.pi * rng.normal(size=channels), c_noise.dtype)
        phases = jnp.asarray(2 * math.pi * rng.uniform(size=channels), c_noise.dtype)
        angles = c_noise[:, None] * frequencies + phases  # B, channels
        return math.sqrt(2) * jnp.sum(jnp.cos(angles) * self.weight[...], axis=1)  # B
