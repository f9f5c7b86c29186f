"""Samplers: walks along a path from noise to data."""

from collections.abc import Callable

from diffusion_jax.diffusion.samplers.base import Sampler, initial_noise, run, sample
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.diffusion.samplers.ddpm import DDPM
from diffusion_jax.diffusion.samplers.euler_maruyama import EulerMaruyama

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler_maruyama": EulerMaruyama,
}

__all__ = ["DDIM", "DDPM", "SAMPLERS", "EulerMaruyama", "Sampler", "initial_noise", "run", "sample"]
