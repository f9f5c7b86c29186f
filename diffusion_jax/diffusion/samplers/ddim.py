"""DDIM (docs/diffusion.md, eq. 6; Song et al. 2021, eq. 12, 16) and its inverse."""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, pick, rows
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(GeneralLinear):
    """DDIM(η): x_s = α_s x̂_0 + √(σ_s² − σ_η²) ε̂ + σ_η z.

    Order 1, one call per step; deterministic at η = 0, where it equals DPM-Solver-1 and Euler in κ, and ancestral
    sampling with the small variance ("Euler ancestral" in κ) at η = 1. Good from about 50 steps.

    Attributes:
      eta: η in [0, 1], the share of the posterior's standard deviation that is drawn anew.
      temperature: factor of the noise z.
    """

    eta: float = 0.0
    temperature: float = 1.0

    name: ClassVar[str] = "ddim"
    order: ClassVar[str] = "1"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "deterministic images in about 50 steps; the decoder of ddim_inversion"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise UserError(f"sampler 'ddim': eta must lie in [0, 1], not {self.eta}")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        calls = []
        for k in range(len(times) - 1):
            t, s = pick(grid, k), pick(grid, k + 1)
            # Zero where s = t, which the LDM code's last step may be.
            forward_variance = max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0)
            fresh = self.eta * s.sigma / t.sigma * np.sqrt(forward_variance)
            kept = np.sqrt(s.sigma**2 - fresh**2)
            calls.append(Call(t, x0=s.alpha, epsilon=kept, x={"m": 1.0}, noise=fresh * self.temperature))
        return rows(calls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMInversion(GeneralLinear):
    """Encodes data into the noise that DDIM(0) decodes: x_next = α_next x̂_0 + σ_next ε̂, towards more noise.

    Order 1, one call per step. `x` is data, taken as the state at the first node; the result is the state at the last.
    """

    steps: int = 250
    final: grids.Final = "none"

    name: ClassVar[str] = "ddim_inversion"
    order: ClassVar[str] = "1"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "encoding data into the noise that ddim decodes"
    default_grids: ClassVar[tuple[str, str]] = ("linspace", "time")

    def times(self, path: Path) -> np.ndarray:
        """[steps + 1] float64, ascending."""
        if self.final != "none":
            raise UserError(f"sampler 'ddim_inversion' ends in noise; final must be 'none', not '{self.final}'")
        return super().times(path)[::-1]

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        ends = (pick(grid, k) for k in range(1, len(times)))
        return rows([Call(pick(grid, k), s.alpha, s.sigma, x={"m": 1.0}) for k, s in enumerate(ends)])
