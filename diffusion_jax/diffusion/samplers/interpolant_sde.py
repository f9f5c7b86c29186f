"""The SDEs that share the marginals of a flow (docs/diffusion.md, eq. 5; Albergo et al. 2023; SiT, Ma et al. 2024)."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import numpy as np

from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers.base import points
from diffusion_jax.diffusion.samplers.general_linear import Call, GeneralLinear, Rows, Weights, pick, rows
from diffusion_jax.diffusion.samplers.probability_flow import velocity_call
from diffusion_jax.errors import UserError

Diffusion = Literal["sigma", "kl", "kl_regularized", "constant", "linear", "decreasing", "sine"]
Method = Literal["euler", "heun"]
LastStep = Literal["mean", "tweedie", "ode", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolantSDE(GeneralLinear):
    """dx = [u − ½ w s] dt + √w dW backwards in time, any w(t) ≥ 0; the SDE sampler of SiT.

    Order 1 (weak), one call per step, two with method `heun`. w = 2 D with D of the SiT code: its usual choice,
    diffusion `sigma`, is w = 2σ (the paper's w = σ is norm 0.5); `kl` gives w = g², the reverse SDE itself. All steps
    but one lie between the first time and last_step_size, and one noise-free step of that size follows; its size leaves
    a bias that more steps do not remove.

    Attributes:
      diffusion: D(t): `sigma` norm · σ; `kl` norm · ½g²; `kl_regularized` the same times √(L/(L + 2η g⁴)) with the
        training loss L(t); `constant` norm; `linear` norm · t; `decreasing` ¼(norm · cos(π(1 − t)) + 1)²; `sine`
        norm · sin²(πt).
      norm: the factor above.
      method: `euler` (Euler-Maruyama), or `heun` (noise first, then a Heun step of the drift).
      last_step: the noise-free end: `mean` of an Euler-Maruyama step, `tweedie` (the predicted data), an `ode` step,
        or `none`.
      last_step_size: where it starts.
      eta: η of `kl_regularized`.
      losses: L at equally spaced times from 0 to 1, for `kl_regularized`.
    """

    steps: int = 250
    final: grids.Final = "none"
    diffusion: Diffusion = "sigma"
    norm: float = 1.0
    method: Method = "euler"
    last_step: LastStep = "mean"
    last_step_size: float = 0.04
    eta: float = 1.0
    losses: tuple[float, ...] = ()

    name: ClassVar[str] = "interpolant_sde"
    order: ClassVar[str] = "1 (weak)"
    calls: ClassVar[str] = "N (heun: 2N − 1)"
    purpose: ClassVar[str] = "SiT's SDE with every w(t)"
    default_grids: ClassVar[tuple[str, str]] = ("time", "time")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'interpolant_sde' diffusion", self.diffusion, Diffusion)
        check_choice("sampler 'interpolant_sde' method", self.method, Method)
        check_choice("sampler 'interpolant_sde' last_step", self.last_step, LastStep)
        if self.final != "none":
            raise UserError(f"sampler 'interpolant_sde' ends by last_step; final must be 'none', not '{self.final}'")
        if self.diffusion == "kl_regularized" and not self.losses:
            raise UserError(
                "sampler 'interpolant_sde': diffusion 'kl_regularized' needs losses, the training loss over t"
            )

    def times(self, path: Path) -> np.ndarray:
        """[steps + 1] float64, descending: the noisy steps, then the last."""
        if self.last_step == "none":
            return super().times(path)
        noisy = dataclasses.replace(self, steps=self.steps - 1, last_step="none", time_end=self.last_step_size)
        return np.append(GeneralLinear.times(noisy, path) if self.steps > 1 else [path.time_max], 0.0)

    def intensity(self, point: Point) -> float:
        """w at a point, 2 D(t)."""
        t = float(point.time)
        match self.diffusion:
            case "sigma":
                return 2 * self.norm * float(point.sigma)
            case "kl":
                return self.norm * float(point.diffusion)
            case "kl_regularized":
                loss = float(np.interp(t, np.linspace(0, 1, len(self.losses)), self.losses))
                kl = float(point.diffusion)
                # Divided through, so that it has its limit √(L/2η) where g² is infinite.
                return self.norm * math.sqrt(loss / (loss / kl**2 + 2 * self.eta)) if kl > 0 else 0.0
            case "constant":
                return 2 * self.norm
            case "linear":
                return 2 * self.norm * t
            case "decreasing":
                return 0.5 * (self.norm * math.cos(math.pi * (1 - t)) + 1) ** 2
            case "sine":
                return 2 * self.norm * math.sin(math.pi * t) ** 2

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = [pick(points(path, times), k) for k in range(len(times))]
        calls: list[Call] = []
        ends = range(len(times) - 1)
        for k in ends if self.last_step == "none" else ends[:-1]:
            calls += self._step(grid[k], grid[k + 1], times[k + 1] - times[k])
        if self.last_step != "none":
            calls.append(self._last(grid[-2], times[-1] - times[-2]))
        return rows(calls)

    def _drift_call(self, point: Point, x: Weights, **others: Any) -> Call:
        """A call whose m is u − ½ w s = α̇ x̂_0 + (σ̇ + ½w/σ) ε̂."""
        half = self.intensity(point) / 2
        call = velocity_call(point, x, **others)
        return dataclasses.replace(call, epsilon=call.epsilon + half / float(point.sigma))

    def _step(self, start: Point, end: Point, dt: float) -> list[Call]:
        spread = math.sqrt(self.intensity(start) * abs(dt))
        if self.method == "euler":
            return [self._drift_call(start, {"x": 1.0, "m": dt}, noise=spread)]
        return [
            self._drift_call(start, {"x": 1.0, "m": dt}, base={"x": 1.0}, store=0, noise_before=spread),
            self._drift_call(end, {"base": 1.0, 0: dt / 2, "m": dt / 2}, step=start),
        ]

    def _last(self, start: Point, dt: float) -> Call:
        if self.last_step == "tweedie":
            return Call(start, 1.0, 0.0, x={"m": 1.0})
        if self.last_step == "ode":
            return velocity_call(start, {"x": 1.0, "m": dt})
        return self._drift_call(start, {"x": 1.0, "m": dt})
