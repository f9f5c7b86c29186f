"""Gaussian paths from data to noise."""

from collections.abc import Callable

from diffusion_jax.diffusion.paths.base import Path
from diffusion_jax.diffusion.paths.discrete import DiscretePath
from diffusion_jax.diffusion.paths.flow import GVPPath, LinearPath
from diffusion_jax.diffusion.paths.variance_exploding import VEPath
from diffusion_jax.diffusion.paths.variance_preserving import CosineVPPath, SubVPPath, VPPath

PATHS: dict[str, Callable[..., Path]] = {
    "ddpm": DiscretePath,
    "vp": VPPath,
    "vp_cosine": CosineVPPath,
    "sub_vp": SubVPPath,
    "ve": VEPath,
    "linear": LinearPath,
    "gvp": GVPPath,
}

__all__ = ["PATHS", "CosineVPPath", "DiscretePath", "GVPPath", "LinearPath", "Path", "SubVPPath", "VEPath", "VPPath"]
