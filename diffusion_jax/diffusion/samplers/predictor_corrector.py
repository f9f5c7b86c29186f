"""Predictor-corrector sampling of score models (Song et al. 2021, algorithms 2 to 5)."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Denoise
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.diffusion.samplers.base import DrawNoise, GridSampler, points
from diffusion_jax.diffusion.samplers.general_linear import Call as LinearCall
from diffusion_jax.diffusion.samplers.general_linear import pick, rows
from diffusion_jax.errors import UserError

Predictor = Literal["reverse_diffusion", "ancestral", "none"]
Norm = Literal["sample", "batch"]


class Rows(NamedTuple):
    """One row per network call.

    Attributes:
      point: fields [R].
      x: [R] weight of x in the predictor's mean.
      epsilon: [R] weight of ε̂ there.
      noise: [R] standard deviation of the predictor's noise.
      corrects: [R] 1 for a Langevin step, 0 for a predictor step.
      langevin: [R] the factor a of the Langevin step size.
    """

    point: Point
    x: Array
    epsilon: Array
    noise: Array
    corrects: Array
    langevin: Array


class State(NamedTuple):
    """The sample so far."""

    x: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(GridSampler[Rows, State]):
    """At each noise level Langevin steps, then a step of the discretised reverse SDE.

    Order 1 (weak) with (1 + corrector_steps) calls per step; the sampler of NCSN++ on the VE path (1000 steps). With
    β = 1 − (α_t/α_s)² and v = σ_t² − (1 − β)σ_s², `reverse_diffusion` is x ← (2 − √(1 − β)) x + v s + √v z, and
    `ancestral` is x ← (x + v s)/√(1 − β) + √V z with V = v where α falls and the posterior variance where it does not.
    The last step adds no noise.

    Attributes:
      predictor: `reverse_diffusion`, `ancestral` or `none`.
      corrector_steps: Langevin steps at each level.
      snr: the target ratio r of the Langevin step: ε = 2a (r ‖z‖/‖s‖)².
      norm: norms per `sample`, or their mean over the `batch` as the reference has it, which makes a sample depend on
        its neighbours.
    """

    steps: int = 1000
    predictor: Predictor = "reverse_diffusion"
    corrector_steps: int = 1
    snr: float = 0.16
    norm: Norm = "sample"

    name: ClassVar[str] = "predictor_corrector"
    order: ClassVar[str] = "1 (weak)"
    calls: ClassVar[str] = "N (1 + corrector_steps)"
    purpose: ClassVar[str] = "NCSN++ on the ve path"
    default_grids: ClassVar[tuple[str, str]] = ("time", "time")

    def __post_init__(self):
        super().__post_init__()
        check_choice("sampler 'predictor_corrector' predictor", self.predictor, Predictor)
        check_choice("sampler 'predictor_corrector' norm", self.norm, Norm)
        if self.corrector_steps < 0 or (self.corrector_steps == 0 and self.predictor == "none"):
            raise UserError("sampler 'predictor_corrector': needs a predictor or at least one of corrector_steps")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        placed: list[Point] = []
        table: list[tuple[float, float, float, float, float]] = []
        for k in range(len(times) - 1):
            t, s = pick(grid, k), pick(grid, k + 1)
            ratio = t.alpha / s.alpha
            variance = t.sigma**2 - (ratio * s.sigma) ** 2
            placed += [t] * self.corrector_steps
            table += [(1.0, 0.0, 0.0, 1.0, ratio**2)] * self.corrector_steps
            last = k == len(times) - 2
            if self.predictor == "reverse_diffusion":
                weights = (2 - ratio, -variance / t.sigma, np.sqrt(variance))
            elif self.predictor == "ancestral":
                spread = variance if ratio < 1 else variance * (s.sigma / t.sigma) ** 2
                weights = (1 / ratio, -variance / (t.sigma * ratio), np.sqrt(spread))
            else:
                continue
            placed.append(t)
            table.append((weights[0], weights[1], 0.0 if last else weights[2], 0.0, ratio**2))
        columns = (np.array(column, dtype=np.float64) for column in zip(*table, strict=True))
        return Rows(rows([LinearCall(point, 0.0, 1.0, x={}) for point in placed]).point, *columns)

    def init(self, x: Array, plan: Rows) -> State:
        return State(x)

    def step(self, state: State, row: Rows, denoise: Denoise, draw: DrawNoise) -> State:
        x, z = state.x, draw(0)
        epsilon = denoise(x, row.point).epsilon
        predicted = row.x * x + row.epsilon * epsilon + row.noise * z
        if self.corrector_steps == 0:
            return State(predicted)
        score = (-1 / row.point.sigma) * epsilon
        z_norm, score_norm = self._norm(z), self._norm(score)
        step_size = 2 * row.langevin * (self.snr * z_norm / score_norm) ** 2
        corrected = x + step_size * score + jnp.sqrt(2 * step_size) * z
        return State(jnp.where(row.corrects > 0, corrected, predicted))

    def _norm(self, x: Array) -> Array:
        """‖x‖ of each sample, or its mean over the batch: [B, 1, ...] or [1, ...]."""
        norms = jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        return norms if self.norm == "sample" else jnp.mean(norms, axis=0, keepdims=True)
