"""Corrections of the predicted data inside the sampling loop; functions of (x̂_0, point) for `denoiser(transforms=…)`.

The noise is derived again from the corrected data, so a correction holds for every sampler.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.errors import UserError

Transform = Callable[[Array, Point], Array]
"""(x0, point) -> x0: a correction of the predicted data, such as clipping."""


def clip(x0: Array, point: Point) -> Array:
    """Clips predicted pixels to [−1, 1]; not for latents."""
    return jnp.clip(x0, -1.0, 1.0)


def dynamic_threshold(quantile: float = 0.995) -> Transform:
    """Clips each sample at a quantile q ≥ 1 of |x̂_0| and divides by it (Imagen, Saharia et al. 2022); for pixels.

    Args:
      quantile: share of the entries kept, in (0, 1].

    Raises:
      UserError: quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise UserError(f"dynamic_threshold: quantile must lie in (0, 1], not {quantile}")

    def transform(x0: Array, point: Point) -> Array:
        magnitude = jnp.abs(x0).reshape(x0.shape[0], -1)  # B, H·W·C
        limit = jnp.maximum(jnp.quantile(magnitude, quantile, axis=1), 1.0)  # B
        limit = limit.reshape(-1, *[1] * (x0.ndim - 1))
        return jnp.clip(x0, -limit, limit) * (1 / limit)

    return transform


def snap_to_codebook(codebook: Array) -> Transform:
    """Replaces each predicted latent vector by its nearest code (LDM's `quantize_denoised`).

    Args:
      codebook: [K, C] codes, in the scale of the latents.
    """

    def transform(x0: Array, point: Point) -> Array:
        codes = codebook.astype(x0.dtype)
        # |x − c|² without |x|², which is the same for every code.
        product = jnp.matmul(x0, codes.T, precision=jax.lax.Precision.HIGHEST)  # B, ..., K
        distance = jnp.sum(codes**2, axis=1) - 2 * product
        return codes[jnp.argmin(distance, axis=-1)]  # B, ..., C

    return transform


def known_region(x0: Array, mask: Array) -> Transform:
    """Holds the data at known values where the mask is 1: inpainting without training.

    With ε̂ derived from the known data, the state there is α x_0 + σ ε at every step, the forward process itself, and
    a run that ends at clean data returns the known region unchanged.

    Args:
      x0: [B, ..., C] known data.
      mask: broadcastable to x0; not 0 where it is known.
    """

    def transform(predicted: Array, point: Point) -> Array:
        return jnp.where(jnp.asarray(mask).astype(bool), x0, predicted)

    return transform
