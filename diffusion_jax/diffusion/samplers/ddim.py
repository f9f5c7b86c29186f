"""DDIM (Song et al. 2021, eq. 12, 16)."""

import dataclasses

import numpy as np

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, pick, rows
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(GeneralLinear):
    """DDIM(η): x_s = α_s x̂_0 + √(σ_s² − σ_η²) ε̂ + σ_η z.

    Order 1, one call per step; deterministic at η = 0, where it equals DPM-Solver-1 and Euler in κ, and ancestral
    sampling with the small variance at η = 1. Good from about 50 steps.

    Attributes:
      eta: η in [0, 1], the share of the posterior's standard deviation that is drawn anew.
    """

    eta: float = 0.0

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
            noise = self.eta * s.sigma / t.sigma * np.sqrt(forward_variance)
            calls.append(Call(t, x0=s.alpha, epsilon=np.sqrt(s.sigma**2 - noise**2), x={"m": 1.0}, noise=noise))
        return rows(calls)
