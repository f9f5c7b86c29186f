"""Samplers that choose their own steps, each sample for itself."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.denoiser import Denoise, apply_gradient
from diffusion_jax.diffusion.ode import dopri5, too_small
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point, align, weighted_sum
from diffusion_jax.diffusion.samplers.base import Noise, Progress, Walk
from diffusion_jax.errors import UserError

# x, the lower-order x before, ln(α/σ) [B], step size [B], attempts
Carry = tuple[Array, Array, Array, Array, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveSampler:
    """What the adaptive samplers share.

    Attributes:
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      time_start: where to start; None means the path's largest time.
      time_end: where to stop; None means the path's smallest time.
      denoise_last: replace the result by the predicted data at time_end, one more call.
      max_steps: bound on step attempts; samples that have not arrived by then are reported, see `Progress`.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    time_start: float | None = None
    time_end: float | None = None
    denoise_last: bool = False
    max_steps: int = 10_000

    name: ClassVar[str]
    order: ClassVar[str]
    calls: ClassVar[str] = "as needed"
    adaptive: ClassVar[bool] = True
    purpose: ClassVar[str]

    def __post_init__(self):
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"sampler '{self.name}': rtol and atol must be positive, not {self.rtol} and {self.atol}")
        if self.max_steps < 1:
            raise UserError(f"sampler '{self.name}': max_steps must be at least 1, not {self.max_steps}")

    def times(self, path: Path) -> np.ndarray:
        """[2] float64: where the walk starts and ends."""
        start = path.time_max if self.time_start is None else self.time_start
        end = path.time_min if self.time_end is None else self.time_end
        if not 0 <= end < start <= 1:
            raise UserError(f"sampler '{self.name}': need 0 ≤ time_end < time_start ≤ 1, not {end} and {start}")
        return np.array([start, end])

    def check(self, path: Path) -> None:
        """Raises a `UserError` if the sampler does not apply to the path."""
        self.times(path)

    def integrate(self, path: Path, denoise: Denoise, x: Array, start: float, end: float) -> tuple[Array, Progress]:
        """The state [B, ..., C] at `end`, or where each sample stopped."""
        raise NotImplementedError

    def walk(self, path: Path, denoise: Denoise, x: Array, noise: Noise, times: np.ndarray | None = None) -> Walk:
        """Integrates from times[0] to times[-1]; the trajectory is the end alone."""
        times = self.times(path) if times is None else times
        denoise = apply_gradient(denoise)
        x, progress = self.integrate(path, denoise, x, float(times[0]), float(times[-1]))
        if self.denoise_last:
            x = denoise(x, path.point(jnp.asarray(times[-1], x.dtype))).x0
        return Walk(x, x[None], progress)


def path_velocity(path: Path, denoise: Denoise, x: Array, time: Array) -> Array:
    """dx/dt of the probability-flow ODE, α̇ x̂_0 + σ̇ ε̂, at one time per sample."""
    point = path.point(time)  # B
    found, at = denoise(x, point), align(point, x)
    return weighted_sum(at.alpha_dot, found.x0, at.sigma_dot, found.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RK45(AdaptiveSampler):
    """The probability-flow ODE by the Dormand-Prince pair; the reference solution of every deterministic sampler.

    Order 5, six calls per step, steps as the tolerance asks (about 100 to 200 calls at 1e-5).
    """

    name: ClassVar[str] = "rk45"
    order: ClassVar[str] = "5"
    purpose: ClassVar[str] = "the reference solution of the ODE; a tolerance in place of a number of steps"

    def integrate(self, path: Path, denoise: Denoise, x: Array, start: float, end: float) -> tuple[Array, Progress]:
        def velocity(x: Array, time: Array) -> Array:
            return path_velocity(path, denoise, x, time)

        found = dopri5(velocity, x, start, end, self.rtol, self.atol, self.max_steps)
        return found.y, Progress(found.time, found.finished, found.stuck)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveDPMSolver(AdaptiveSampler):
    """DPM-Solver++-12 or -23: single steps in λ whose lower order judges the higher (Lu et al. 2022a, appendix C).

    Order 2 or 3 with as many calls per step, accepted or not.

    Attributes:
      solver_order: 2 or 3.
      first_step: the first h in λ.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    solver_order: Literal[2, 3] = 3
    first_step: float = 0.05

    name: ClassVar[str] = "adaptive_dpm_solver"
    order: ClassVar[str] = "2, 3"
    purpose: ClassVar[str] = "a tolerance in place of a number of steps, in few calls"

    def __post_init__(self):
        super().__post_init__()
        if self.solver_order not in (2, 3):
            raise UserError(f"sampler 'adaptive_dpm_solver': solver_order must be 2 or 3, not {self.solver_order}")
        if not self.first_step > 0:
            raise UserError(f"sampler 'adaptive_dpm_solver': first_step must be positive, not {self.first_step}")

    def check(self, path: Path) -> None:
        """Raises a `UserError` where λ is infinite at an end."""
        kappa = path.point(self.times(path)).kappa
        if not np.all((kappa > 0) & np.isfinite(kappa)):
            raise UserError(
                f"sampler 'adaptive_dpm_solver' steps in ln(α/σ), which is infinite at an end of path '{path.name}'; "
                "choose time_start below 1 and time_end above 0"
            )

    def integrate(self, path: Path, denoise: Denoise, x: Array, start: float, end: float) -> tuple[Array, Progress]:
        self.check(path)
        first, last = (float(-np.log(path.point(np.float64(t)).kappa)) for t in (start, end))
        shape, dtype = x.shape[:1], x.dtype

        def at(log_snr: Array) -> Point:
            return path.point(path.time_of_kappa(jnp.exp(-log_snr)))  # B

        def transfer(x: Array, s: Point, t: Point, h: Array) -> tuple[Array, Array, Array]:
            """σ_t/σ_s x, and the weights of x̂_0 and of its first difference."""
            e = jnp.expm1(-h)
            return (
                align(t.sigma / s.sigma, x) * x,
                align(-t.alpha * e, x),
                align(t.alpha * (1 - e / jnp.where(h > 0, -h, -1.0)), x),
            )

        def proposals(x: Array, lam: Array, h: Array) -> tuple[Array, Array]:
            """The lower-order and the higher-order result of one step."""
            s, t = at(lam), at(lam + h)
            m = denoise(x, s).x0
            r1 = 1 / 2 if self.solver_order == 2 else 1 / 3
            inner = at(lam + r1 * h)
            base, weight, _ = transfer(x, s, inner, r1 * h)
            m1 = denoise(base + weight * m, inner).x0
            base, weight, slope = transfer(x, s, t, h)
            first = base + weight * m
            second = first + weight / (2 * r1) * (m1 - m)
            if self.solver_order == 2:
                return first, second
            inner2 = at(lam + 2 / 3 * h)
            base2, weight2, slope2 = transfer(x, s, inner2, 2 / 3 * h)
            m2 = denoise(base2 + weight2 * m + 2 * slope2 * (m1 - m), inner2).x0
            return second, first + slope * 1.5 * (m2 - m)

        def stuck(lam: Array, h: Array) -> Array:
            return (lam < last) & too_small(h, last - first)

        def unfinished(carry: Carry) -> Array:
            _, _, lam, h, attempts = carry
            return jnp.any((lam < last) & ~stuck(lam, h)) & (attempts < self.max_steps)

        def attempt(carry: Carry) -> Carry:
            x, previous, lam, h, attempts = carry
            alive = ~stuck(lam, h)
            h = jnp.minimum(h, last - lam)
            low, high = proposals(x, lam, h)
            scale = jnp.maximum(self.atol, self.rtol * jnp.maximum(jnp.abs(low), jnp.abs(previous)))
            error = jnp.sqrt(jnp.mean(((high - low) / scale).reshape(shape[0], -1) ** 2, axis=1))
            accept = (error <= 1) & (h > 0) & alive
            chosen = align(accept, x)
            lam = jnp.where(accept, jnp.where(last - lam - h <= 1e-6, last, lam + h), lam)
            factor = 0.9 * jnp.maximum(error, 1e-10) ** (-1 / self.solver_order)
            h = jnp.where((h > 0) & alive, h * factor, h)
            return jnp.where(chosen, high, x), jnp.where(chosen, low, previous), lam, h, attempts + 1

        carry = (x, x, jnp.full(shape, first, dtype), jnp.full(shape, self.first_step, dtype), jnp.int32(0))
        x, _, lam, h, _ = jax.lax.while_loop(unfinished, attempt, carry)
        return x, Progress(at(lam).time, lam >= last, stuck(lam, h))
