"""Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6)."""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, pick, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama(GeneralLinear):
    """Euler-Maruyama: x += [f x − g² s] Δt + g √|Δt| z with the score s = −ε̂/σ.

    Order 1 (weak), one call per step; the sampler of U-ViT, IU-ViT and ASCEND with 1000 steps. Any path that has a
    forward SDE will do, a discrete chain too (its ln α is linear between timesteps).

    Attributes:
      noise_in_last_step: False returns the mean of the last step.
      reference_step: take Δt = −1/steps whatever the grid, as the Score-SDE code does.
    """

    steps: int = 1000
    noise_in_last_step: bool = False
    reference_step: bool = False

    name: ClassVar[str] = "euler_maruyama"
    order: ClassVar[str] = "1 (weak)"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "the reverse SDE in 1000 steps: U-ViT, IU-ViT, ASCEND"
    default_grids: ClassVar[tuple[str, str]] = ("time", "time")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        calls = []
        for k, step in enumerate(np.diff(times)):
            point, dt = pick(grid, k), -1 / self.steps if self.reference_step else step
            noisy = self.noise_in_last_step or k < len(times) - 2
            calls.append(
                Call(
                    point,
                    x0=0.0,
                    epsilon=point.diffusion / point.sigma,
                    x={"x": 1 + point.drift * dt, "m": dt},
                    noise=np.sqrt(point.diffusion * -dt) if noisy else 0.0,
                )
            )
        return rows(calls)
