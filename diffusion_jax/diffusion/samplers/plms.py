"""Pseudo linear multistep methods (Liu et al. 2022)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, pick, rows
from diffusion_jax.errors import UserError

Warmup = Literal["euler", "runge_kutta"]

# Adams-Bashforth weights of ε̂ now and one, two, three steps ago.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _transfer(t: Point, s: Point, epsilon: Weights, start: str) -> Weights:
    """The DDIM(0) step t → s of the state in register `start`, with a combination of noise predictions."""
    ratio = s.alpha / t.alpha
    noise = s.sigma - ratio * t.sigma
    return {start: ratio} | {name: noise * weight for name, weight in epsilon.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PLMS(GeneralLinear):
    """PLMS: DDIM(0) with ε̂ extrapolated from the last four steps.

    Order 2 (the weights assume uniform spacing in κ, so not 4), one call per step and one more at the start, or 12
    calls for the first three steps with warmup `runge_kutta` (PNDM). Good from about 20 steps; the sampler of the LDM
    text-to-image release.

    Attributes:
      warmup: `euler` averages ε̂ over the ends of the first step; `runge_kutta` takes three pseudo Runge-Kutta steps.
    """

    warmup: Warmup = "euler"

    name: ClassVar[str] = "plms"
    order: ClassVar[str] = "2"
    calls: ClassVar[str] = "N + 1"
    purpose: ClassVar[str] = "LDM's text-to-image release; from about 20 steps"

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'plms' warmup", self.warmup, Warmup)
        if self.warmup == "runge_kutta" and self.steps < 4:
            raise UserError(
                f"sampler 'plms': warmup 'runge_kutta' takes 3 steps before the first; steps {self.steps} < 4"
            )

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = [pick(points(path, times), k) for k in range(len(times))]
        if self.warmup == "euler":
            calls, known = self._euler(grid), 1
        else:
            middles = points(path, (times[:-1] + times[1:]) / 2)
            calls, known = self._runge_kutta(grid, [pick(middles, k) for k in range(3)]), 3
        # Slot k mod 3 holds ε̂ of step k.
        for k in range(known, len(times) - 1):
            order = min(k + 1, 4)
            names: list[str | int] = ["m", *((k - back) % 3 for back in range(1, order))]
            epsilon = dict(zip(names, ADAMS_BASHFORTH[order], strict=True))
            calls.append(Call(grid[k], 0.0, 1.0, x=_transfer(grid[k], grid[k + 1], epsilon, "x"), store=k % 3))
        return rows(calls)

    def _euler(self, grid: list[Point]) -> list[Call]:
        start, end = grid[:2]
        trial = Call(start, 0.0, 1.0, x=_transfer(start, end, {"m": 1.0}, "x"), base={"x": 1.0}, store=0)
        if len(grid) == 2:
            return [trial]
        step = _transfer(start, end, {"m": 0.5, 0: 0.5}, "base")
        return [trial, Call(end, 0.0, 1.0, x=step, step=start)]

    def _runge_kutta(self, grid: list[Point], middles: list[Point]) -> list[Call]:
        calls = []
        for k in range(3):
            # ε̂ of the first stage stays for the multistep formula; slots 3 and 4 hold the inner stages.
            start, middle, end = grid[k], middles[k], grid[k + 1]
            average: Weights = {k: 1 / 6, 3: 1 / 3, 4: 1 / 3, "m": 1 / 6}
            calls += [
                Call(start, 0.0, 1.0, x=_transfer(start, middle, {"m": 1.0}, "x"), base={"x": 1.0}, store=k),
                Call(middle, 0.0, 1.0, x=_transfer(start, middle, {"m": 1.0}, "base"), store=3, step=start),
                Call(middle, 0.0, 1.0, x=_transfer(start, end, {"m": 1.0}, "base"), store=4, step=start),
                Call(end, 0.0, 1.0, x=_transfer(start, end, average, "base"), step=start),
            ]
        return calls
