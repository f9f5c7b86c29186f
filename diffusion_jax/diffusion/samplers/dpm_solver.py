"""DPM-Solver and DPM-Solver++, single steps with inner stages (docs/diffusion.md, eq. 7; Lu et al. 2022a, 2022b)."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, pick, rows
from diffusion_jax.errors import UserError

Form = Literal["x0", "epsilon"]


class ExponentialStep(NamedTuple):
    """The factors of an exponential integrator for one step s → t.

    In both forms x_t = prefix · x_s − scale · (E m_s + (E/z − 1) D_1 + ((E − z)/z² − ½) D_2 + …) with E = e^z − 1;
    z = −h and scale = α_t for m = x̂_0 (DPM-Solver++), z = h and scale = σ_t for m = ε̂ (DPM-Solver), h = λ_t − λ_s.

    Attributes:
      prefix: σ_t/σ_s or α_t/α_s.
      scale: α_t or σ_t.
      z: ∓h.
    """

    prefix: float
    scale: float
    z: float

    @property
    def first(self) -> float:
        """The weight −scale · E of m_s."""
        return -self.scale * np.expm1(self.z)

    @property
    def second(self) -> float:
        """The weight −scale · (E/z − 1) of D_1."""
        return -self.scale * (np.expm1(self.z) / self.z - 1)

    @property
    def third(self) -> float:
        """The weight −scale · ((E − z)/z² − ½) of D_2."""
        return -self.scale * ((np.expm1(self.z) - self.z) / self.z**2 - 0.5)


def exponential_step(s: Point, t: Point, form: Form) -> ExponentialStep:
    """The factors of the step s → t."""
    h = float(np.log(s.kappa) - np.log(t.kappa))
    if form == "x0":
        return ExponentialStep(t.sigma / s.sigma, t.alpha, -h)
    return ExponentialStep(t.alpha / s.alpha, t.sigma, h)


def first_order(s: Point, t: Point, form: Form, start: str = "x") -> Weights:
    """The first-order step s → t (DDIM), t clean data or not."""
    if form == "x0":
        return {start: t.sigma / s.sigma, "m": t.alpha - t.sigma * s.alpha / s.sigma}
    return {start: t.alpha / s.alpha, "m": t.sigma - t.alpha * s.kappa}


def model_term(form: Form) -> tuple[float, float]:
    """The weights of x̂_0 and ε̂ that make m the predicted data or the predicted noise."""
    return (1.0, 0.0) if form == "x0" else (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(GeneralLinear):
    """DPM-Solver(++)-1, -2S and -3S: exponential Runge-Kutta in λ = ln(α/σ).

    Order 1, 2 or 3 with as many calls per step; in the form x0 (DPM-Solver++, robust under guidance) or epsilon
    (DPM-Solver). The last step, to clean data, is of first order. Good from about 10 to 20 calls.

    Attributes:
      solver_order: 1, 2 or 3.
      form: what is interpolated, the predicted data `x0` or the noise `epsilon`.
      fast: `steps` counts network calls, spent on steps of third order with lower ones at the end (3, …, 3, 2, 1).
    """

    steps: int = 20
    solver_order: Literal[1, 2, 3] = 3
    form: Form = "x0"
    fast: bool = False

    name: ClassVar[str] = "dpm_solver"
    order: ClassVar[str] = "1, 2, 3"
    calls: ClassVar[str] = "N, 2N, 3N"
    purpose: ClassVar[str] = "high order without memory; from about 10 to 20 calls"
    default_grids: ClassVar[tuple[str, str]] = ("log_snr", "log_snr")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'dpm_solver' form", self.form, Form)
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"sampler 'dpm_solver': solver_order must be 1, 2 or 3, not {self.solver_order}")
        if self.fast and self.solver_order != 3:
            raise UserError("sampler 'dpm_solver': fast spends calls on third-order steps; set solver_order 3")

    def orders(self) -> list[int]:
        """The order of each step."""
        if not self.fast:
            return [self.solver_order] * self.steps
        thirds, rest = divmod(self.steps, 3)
        if rest == 0:
            return [3] * (thirds - 1) + [2, 1]
        return [3] * thirds + [rest]

    def grid_steps(self) -> int:
        """The number of steps, which `fast` derives from the number of calls."""
        return len(self.orders())

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        calls: list[Call] = []
        for k, order in enumerate(self.orders()):
            s, t = pick(grid, k), pick(grid, k + 1)
            calls += self._step(path, s, t, 1 if t.sigma == 0 else order)
        return rows(calls)

    def _step(self, path: Path, s: Point, t: Point, order: int) -> list[Call]:
        term = model_term(self.form)
        if order == 1:
            return [Call(s, *term, x=first_order(s, t, self.form))]
        h = float(np.log(s.kappa) - np.log(t.kappa))

        def inner(r: float) -> Point:
            """The point at λ_s + r h."""
            return path.point(path.time_of_kappa(np.float64(s.kappa * np.exp(-r * h))))

        full = exponential_step(s, t, self.form)
        if order == 2:
            middle = inner(0.5)
            half = exponential_step(s, middle, self.form)
            return [
                Call(s, *term, x={"x": half.prefix, "m": half.first}, base={"x": 1.0}, store=0),
                Call(middle, *term, x={"base": full.prefix, "m": full.first}, step=s),
            ]
        first, second = inner(1 / 3), inner(2 / 3)
        to_first, to_second = exponential_step(s, first, self.form), exponential_step(s, second, self.form)
        return [
            Call(s, *term, x={"x": to_first.prefix, "m": to_first.first}, base={"x": 1.0}, store=0),
            Call(
                first,
                *term,
                x={"base": to_second.prefix, 0: to_second.first - 2 * to_second.second, "m": 2 * to_second.second},
                step=s,
            ),
            Call(
                second,
                *term,
                x={"base": full.prefix, 0: full.first - full.second / (2 / 3), "m": full.second / (2 / 3)},
                step=s,
            ),
        ]
