"""UniPC: a unified predictor-corrector (Zhao et al. 2023)."""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, combine, pick, rows
from diffusion_jax.errors import UserError

Variant = Literal["bh1", "bh2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(GeneralLinear):
    """UniPC-p: a multistep predictor whose result is corrected with the next network call, at no extra cost.

    Order p + 1 (p without the corrector), one call per step. Good from about 8 steps.

    Attributes:
      solver_order: p.
      variant: B(h) = e^{−h} − 1 (`bh2`) or −h (`bh1`, for unguided sampling in few steps).
      corrector: whether to correct.
      lower_order_final: end with orders p − 1, …, 1.
    """

    steps: int = 15
    solver_order: int = 2
    variant: Variant = "bh2"
    corrector: bool = True
    lower_order_final: bool = True

    name: ClassVar[str] = "unipc"
    order: ClassVar[str] = "p + 1"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "the fewest calls; from about 8 steps"
    default_grids: ClassVar[tuple[str, str]] = ("log_snr", "log_snr")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'unipc' variant", self.variant, Variant)
        if not 1 <= self.solver_order <= 4:
            raise UserError(f"sampler 'unipc': solver_order must be 1 to 4, not {self.solver_order}")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = [pick(points(path, times), k) for k in range(len(times))]
        steps, p = len(grid) - 1, self.solver_order
        orders = [min(p, k + 1, steps - k if self.lower_order_final else p) for k in range(steps)]
        calls = []
        for k in range(steps):
            # The slot of step j is j mod p; m of step k itself is "m" until stored.
            here: Weights = {"x": 1.0}
            if k > 0 and self.corrector:
                here = self._move(grid, k - 1, orders[k - 1], start={"base": 1.0}, current=k)
            ahead = self._move(grid, k, orders[k], start=here, current=k, predict=True)
            calls.append(Call(grid[k], 1.0, 0.0, x=ahead, base=here, store=k % p))
        return rows(calls)

    def _slot(self, j: int, current: int) -> str | int:
        return "m" if j == current else j % self.solver_order

    def _move(
        self, grid: list[Point], k: int, order: int, start: Weights, current: int, predict: bool = False
    ) -> Weights:
        """The step k → k + 1 from the state `start`: the predictor, or the corrector that knows m of step k + 1.

        Args:
          grid: the nodes.
          k: where the step starts.
          order: p of this step.
          start: weights that make up the state at node k.
          current: the node of the present network call, whose prediction is "m".
          predict: predictor or corrector.
        """
        s, t = grid[k], grid[k + 1]
        m0 = self._slot(k, current)
        if t.sigma == 0:
            return {m0: t.alpha}
        h = float(np.log(s.kappa) - np.log(t.kappa))
        exponential = np.expm1(-h)
        b_h = exponential if self.variant == "bh2" else -h
        ratios, names = [], []
        for back in range(1, order):
            ratios.append(float(np.log(s.kappa) - np.log(grid[k - back].kappa)) / h)
            names.append(self._slot(k - back, current))
        if not predict:
            ratios.append(1.0)
            names.append(self._slot(k + 1, current))
        weights = combine((t.sigma / s.sigma, start), (1.0, {m0: -t.alpha * exponential}))
        for rho, ratio, name in zip(_rhos(ratios, -h, b_h), ratios, names, strict=True):
            difference: Weights = {name: 1 / ratio, m0: -1 / ratio}
            weights = combine((1.0, weights), (-t.alpha * b_h * rho, difference))
        return weights


def _rhos(ratios: list[float], z: float, b_h: float) -> np.ndarray:
    """The weights ρ of the differences at λ_s + r h: R ρ = b with R_ik = r_k^{i−1}, b_i = i! ϕ_i/B (eq. 9 to 11).

    Args:
      ratios: the r of each difference.
      z: −h.
      b_h: B(h).
    """
    if not ratios:
        return np.zeros(0)
    if len(ratios) == 1:
        return np.array([0.5])  # the published choice, exact as h → 0
    phi = np.expm1(z) / z - 1
    b = []
    for i in range(1, len(ratios) + 1):
        b.append(math.factorial(i) * phi / b_h)
        phi = phi / z - 1 / math.factorial(i + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(b))
