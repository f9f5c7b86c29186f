"""Multistep DPM-Solver(++) and its stochastic form (Lu et al. 2022b)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.dpm_solver import Form, exponential_step, first_order, model_term
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, combine, pick, rows
from diffusion_jax.errors import UserError

Correction = Literal["midpoint", "heun"]


def step_orders(steps: int, order: int, lower_order_final: bool) -> list[int]:
    """The order of each step: rising from 1, and in short runs falling to 2 and 1 at the end.

    Args:
      steps: the number of steps N.
      order: the order in the middle.
      lower_order_final: end with orders 2 and 1 where N < 15.
    """
    orders = [min(order, k + 1) for k in range(steps)]
    if lower_order_final and steps < 15:
        orders = [min(o, steps - k) for k, o in enumerate(orders)]
    return orders


def differences(grid: list[Point], k: int, order: int, d2_factor: float) -> tuple[Weights, Weights]:
    """D_1 and D_2 at step k, as weights of m and of the slots (j mod 2) that hold m of step j."""

    def h(j: int) -> float:
        return float(np.log(grid[j].kappa) - np.log(grid[j + 1].kappa))

    latest: Weights = {"m": 1.0, (k - 1) % 2: -1.0}
    inverse_r0 = h(k) / h(k - 1)
    if order == 2:
        return {name: value * inverse_r0 for name, value in latest.items()}, {}
    # Written with 1/r so that an infinite first step gives zero weight.
    inverse_r1 = h(k) / h(k - 2)
    d1_0 = combine((inverse_r0, latest))
    d1_1 = combine((inverse_r1, {(k - 1) % 2: 1.0, k % 2: -1.0}))
    curvature = combine((1.0, d1_0), (-1.0, d1_1))
    share = inverse_r1 / (inverse_r0 + inverse_r1)  # r_0/(r_0 + r_1)
    d1 = combine((1.0, d1_0), (share, curvature))
    d2 = combine((d2_factor * inverse_r0 * inverse_r1 / (inverse_r0 + inverse_r1), curvature))
    return d1, d2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(GeneralLinear):
    """DPM-Solver(++) 2M and 3M: exponential multistep in λ, from stored predictions.

    Order 2 or 3, one call per step; with DPM-Solver++ 2M the usual choice at 15 to 30 steps under guidance. The last
    step, to clean data, is of first order.

    Attributes:
      solver_order: 1, 2 or 3.
      form: what is extrapolated, the predicted data `x0` (DPM-Solver++) or the noise `epsilon`.
      correction: how second order uses the difference, `midpoint` or `heun`.
      d2_factor: 2, or 1 for the published third-order formula, which lacks the factor and has order 2.
      lower_order_final: in runs of fewer than 15 steps, end with orders 2 and 1.
    """

    steps: int = 20
    solver_order: Literal[1, 2, 3] = 2
    form: Form = "x0"
    correction: Correction = "midpoint"
    d2_factor: float = 2.0
    lower_order_final: bool = True

    name: ClassVar[str] = "dpm_solver_multistep"
    order: ClassVar[str] = "1, 2, 3"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "the usual choice at 15 to 30 calls, guided or not"
    default_grids: ClassVar[tuple[str, str]] = ("log_snr", "log_snr")

    def __post_init__(self):
        super().__post_init__()
        check_choice(f"sampler '{self.name}' form", self.form, Form)
        check_choice(f"sampler '{self.name}' correction", self.correction, Correction)
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"sampler '{self.name}': solver_order must be 1, 2 or 3, not {self.solver_order}")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = [pick(points(path, times), k) for k in range(len(times))]
        orders = step_orders(len(grid) - 1, self.solver_order, self.lower_order_final)
        return rows([self._call(grid, k, order) for k, order in enumerate(orders)])

    def _call(self, grid: list[Point], k: int, order: int) -> Call:
        s, t = grid[k], grid[k + 1]
        term, store = model_term(self.form), k % 2 if self.solver_order > 1 else None
        if order == 1 or t.sigma == 0:
            return Call(s, *term, x=first_order(s, t, self.form), store=store)
        step = exponential_step(s, t, self.form)
        d1, d2 = differences(grid, k, order, self.d2_factor)
        d1_weight = step.first / 2 if order == 2 and self.correction == "midpoint" else step.second
        first: Weights = {"x": step.prefix, "m": step.first}
        weights = combine((1.0, first), (d1_weight, d1), (step.third if order == 3 else 0.0, d2))
        return Call(s, *term, x=weights, store=store)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolver(GeneralLinear):
    """SDE-DPM-Solver++ 1 and 2M: the stochastic form, with fresh noise in every step but the last.

    Order 1 or 2 (weak), one call per step; first order equals DDIM(η = 1). Good from about 25 steps.

    Attributes:
      solver_order: 1 or 2.
      lower_order_final: in runs of fewer than 15 steps, end with order 1.
    """

    steps: int = 25
    solver_order: Literal[1, 2] = 2
    lower_order_final: bool = True

    name: ClassVar[str] = "sde_dpm_solver"
    order: ClassVar[str] = "1, 2 (weak)"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "fresh noise with few steps; from about 25"
    default_grids: ClassVar[tuple[str, str]] = ("log_snr", "log_snr")

    def __post_init__(self):
        super().__post_init__()
        if self.solver_order not in (1, 2):
            raise UserError(f"sampler 'sde_dpm_solver': solver_order must be 1 or 2, not {self.solver_order}")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = [pick(points(path, times), k) for k in range(len(times))]
        calls = []
        for k, order in enumerate(step_orders(len(grid) - 1, self.solver_order, self.lower_order_final)):
            s, t = grid[k], grid[k + 1]
            decay = t.kappa / s.kappa  # e^{−h}
            x0_weight = t.alpha * (1 - decay**2)
            weights: Weights = {"x": t.sigma / s.sigma * decay, "m": x0_weight}
            if order == 2 and t.sigma > 0:
                weights = combine((1.0, weights), (x0_weight / 2, differences(grid, k, 2, 2.0)[0]))
            noise = t.sigma * np.sqrt(1 - decay**2)
            calls.append(Call(s, 1.0, 0.0, x=weights, store=k % 2 if self.solver_order > 1 else None, noise=noise))
        return rows(calls)
