"""Denoise and add fresh noise: the multistep sampler of consistency and flow-map models."""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, pick, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renoise(GeneralLinear):
    """x_s = α_s x̂_0 + σ_s z: keeps nothing of x but the predicted data.

    Order 0 for a diffusion model (its samples are too narrow at any number of steps), exact for a network that returns
    samples; one call per step.
    """

    steps: int = 4

    name: ClassVar[str] = "renoise"
    order: ClassVar[str] = "0"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "consistency and flow-map models"

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        ends = (pick(grid, k) for k in range(1, len(times)))
        return rows([Call(pick(grid, k), s.alpha, 0.0, x={"m": 1.0}, noise=s.sigma) for k, s in enumerate(ends)])
