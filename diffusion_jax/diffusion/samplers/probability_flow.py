"""The probability-flow ODE dx/dt = α̇ x̂_0 + σ̇ ε̂, with Runge-Kutta steps in t (docs/diffusion.md, eq. 5 with w = 0).

Song et al. 2021, eq. 13; Lipman et al. 2023.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, pick, rows

Method = Literal["euler", "heun", "rk4"]


def velocity_call(point: Point, x: Weights, **others: Any) -> Call:
    """A call whose m is the velocity at `point`."""
    return Call(point, x0=float(point.alpha_dot), epsilon=float(point.sigma_dot), x=x, **others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(GeneralLinear):
    """Euler, Heun or RK4 on the ODE that carries noise to data; the sampler of flow models.

    Order 1, 2 or 4 with 1, 2 or 4 calls per step. The velocity of a variance-preserving path is infinite at the data,
    so a last step that ends there is an Euler step; interpolants take it whole.

    Attributes:
      method: `euler`, `heun` or `rk4`.
    """

    method: Method = "euler"

    name: ClassVar[str] = "probability_flow"
    order: ClassVar[str] = "1, 2, 4"
    calls: ClassVar[str] = "N, 2N, 4N"
    purpose: ClassVar[str] = "flow models: rectified flow, SiT's ODE"
    default_grids: ClassVar[tuple[str, str]] = ("time", "time")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'probability_flow' method", self.method, Method)

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        middles = points(path, (times[:-1] + times[1:]) / 2)
        calls: list[Call] = []
        for k, dt in enumerate(np.diff(times)):
            start, middle, end = pick(grid, k), pick(middles, k), pick(grid, k + 1)
            if self.method == "euler" or not np.isfinite(end.sigma_dot):
                calls.append(velocity_call(start, {"x": 1.0, "m": dt}))
            elif self.method == "heun":
                calls += [
                    velocity_call(start, {"x": 1.0, "m": dt}, base={"x": 1.0}, store=0),
                    velocity_call(end, {"base": 1.0, 0: dt / 2, "m": dt / 2}, step=start),
                ]
            else:
                calls += [
                    velocity_call(start, {"x": 1.0, "m": dt / 2}, base={"x": 1.0}, store=0),
                    velocity_call(middle, {"base": 1.0, "m": dt / 2}, store=1, step=start),
                    velocity_call(middle, {"base": 1.0, "m": dt}, store=2, step=start),
                    velocity_call(end, {"base": 1.0, 0: dt / 6, 1: dt / 3, 2: dt / 3, "m": dt / 6}, step=start),
                ]
        return rows(calls)
