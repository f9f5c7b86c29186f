"""Gaussian paths from data to noise."""

from collections.abc import Callable

from diffusion_jax.diffusion.paths.base import Path
from diffusion_jax.diffusion.paths.discrete import DiscretePath
from diffusion_jax.diffusion.paths.variance_preserving import VPPath

PATHS: dict[str, Callable[..., Path]] = {
    "ddpm": DiscretePath,
    "vp": VPPath,
}

__all__ = ["PATHS", "DiscretePath", "Path", "VPPath"]
