"""The sampler of EDM: Heun steps in the noise level κ = σ/α, with optional churn (docs/diffusion.md, eq. 8).

Karras et al. 2022, algorithm 2.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, pick, rows
from diffusion_jax.errors import UserError
from diffusion_jax.schema import OpenFloat

Method = Literal["euler", "heun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(GeneralLinear):
    """EDM's deterministic or churning sampler, for any path (in x/α every path is x_0 + κ ε).

    Order 2 with 2N − 1 calls (`heun`), or 1 with N (`euler`). Published settings: 18 steps; 256 steps with s_churn 40,
    s_min 0.05, s_max 50, s_noise 1.003 for ImageNet 64; 32 steps for EDM2.

    Attributes:
      method: `heun` or `euler`.
      kappa_max: the first noise level; None means 80, or the path's largest if that is smaller.
      kappa_min: the last noise level before the data; None means 0.002, or the path's smallest if that is larger.
      s_churn: how much noise is added and removed over the run.
      s_min: no churn below this noise level.
      s_max: no churn above it.
      s_noise: factor of the noise added.

    Raises:
      UserError: when planned, noise levels that the path does not have.
    """

    steps: int = 18
    method: Method = "heun"
    kappa_max: float | None = None
    kappa_min: float | None = None
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: OpenFloat = math.inf
    s_noise: float = 1.0

    name: ClassVar[str] = "edm"
    order: ClassVar[str] = "2 (euler: 1)"
    calls: ClassVar[str] = "2N − 1 (euler: N)"
    purpose: ClassVar[str] = "EDM and EDM2, with churn; any path"
    default_grids: ClassVar[tuple[str, str]] = ("karras", "karras")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'edm' method", self.method, Method)

    def times(self, path: Path) -> np.ndarray:
        """[steps + 1] float64, descending."""
        if self.grid not in (None, "karras", "log_snr") or self.time_start is not None or self.time_end is not None:
            return super().times(path)
        low, high = (float(path.point(np.float64(t)).kappa) for t in (path.time_min, path.time_max))
        kappa_max = min(80.0, high) if self.kappa_max is None else self.kappa_max
        kappa_min = max(0.002, low) if self.kappa_min is None else self.kappa_min
        if not 0 < kappa_min < kappa_max <= high * (1 + 1e-9):
            raise UserError(
                f"sampler 'edm': need 0 < kappa_min < kappa_max ≤ {high:.4g}, the largest noise level of path "
                f"'{path.name}', not {kappa_min:.4g} and {kappa_max:.4g}"
            )
        start, end = (float(path.time_of_kappa(np.float64(kappa))) for kappa in (kappa_max, kappa_min))
        bounded = dataclasses.replace(self, time_start=min(start, 1.0), time_end=max(end, 0.0))
        return bounded.times(path) if self.grid else dataclasses.replace(bounded, grid="karras").times(path)

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        calls: list[Call] = []
        for k in range(len(times) - 1):
            start, end = pick(grid, k), pick(grid, k + 1)
            churned = self._churned(path, start, len(times) - 1)
            noise = churned.alpha * math.sqrt(max(churned.kappa**2 - start.kappa**2, 0.0)) * self.s_noise
            before = {"scale_before": churned.alpha / start.alpha, "noise_before": noise}
            # In x/α the slope is ε̂, so a step is α'(x/α̂ + (κ' − κ̂) ε̂).
            ratio, move = end.alpha / churned.alpha, end.sigma - end.alpha * churned.kappa
            euler = Call(churned, 0.0, 1.0, x={"x": ratio, "m": move}, base={"x": 1.0}, store=0, **before)
            if self.method == "euler" or end.sigma == 0:
                calls.append(dataclasses.replace(euler, store=None))
            else:
                average: Weights = {"base": ratio, 0: move / 2, "m": move / 2}
                calls += [euler, Call(end, 0.0, 1.0, x=average, step=churned)]
        return rows(calls)

    def _churned(self, path: Path, start: Point, steps: int) -> Point:
        """The point to which noise is added before a step."""
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.s_min <= start.kappa <= self.s_max:
            return start
        kappa = np.float64(start.kappa * (1 + gamma))
        churned = path.point(path.time_of_kappa(kappa))
        # A chain ends at its last timestep; there is no more noise to go to.
        return churned if abs(churned.kappa / kappa - 1) < 1e-6 else start
