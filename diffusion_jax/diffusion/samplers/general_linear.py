"""General linear methods: every sampler whose step is a linear combination with coefficients known in advance.

A network call gives x̂_0 and ε̂, of which the method keeps one combination m. The next x, and a second register `base`
(the state at the start of a step with inner stages), are linear in (x, base, m, stored values of m) plus noise. One
step DDIM, multistep DPM-Solver++ and Runge-Kutta differ only in the rows of coefficients they write down (Butcher's
general linear methods, with the exponential-integrator factors of α and σ inside the coefficients).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.denoiser import Denoise
from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.samplers.base import DrawNoise, GridSampler

# Weights of a linear combination by register: "x", "base", "m", or the number of a slot with an earlier m.
Weights = dict[str | int, float]


@dataclasses.dataclass
class Call:
    """One network call and what follows from it; the host-side notation of one row.

    Attributes:
      point: where the network is evaluated; scalar float64 fields.
      x0: weight of x̂_0 in m.
      epsilon: weight of ε̂ in m.
      x: weights of the next x.
      base: weights of the next base; the default keeps it, {"x": 1.0} starts a step here.
      store: the slot that m is written to, after use.
      noise: standard deviation of the noise added to the next x.
      scale_before: factor of x before the call.
      noise_before: standard deviation of the noise added to x before the call.
      step: where the step began that this call is an inner stage of; None for the first stage.
    """

    point: Point
    x0: float
    epsilon: float
    x: Weights
    base: Weights = dataclasses.field(default_factory=lambda: {"base": 1.0})
    store: int | None = None
    noise: float = 0.0
    scale_before: float = 1.0
    noise_before: float = 0.0
    step: Point | None = None


class Rows(NamedTuple):
    """The calls of a run as arrays; None where no call of the run has the feature.

    Attributes:
      point: fields [R].
      x0, epsilon: [R].
      x: [R, 3 + S] weights of x, base, m and the S slots.
      base: [R, 3 + S] likewise, None for methods without inner stages.
      store: [R] int, S for "nowhere", None for methods without memory.
      noise: [R].
      scale_before, noise_before: [R].
    """

    point: Point
    x0: Array
    epsilon: Array
    x: Array
    base: Array | None
    store: Array | None
    noise: Array | None
    scale_before: Array | None
    noise_before: Array | None


class State(NamedTuple):
    """The state between network calls.

    Attributes:
      x: [B, ..., C].
      base: [B, ..., C] or None.
      slots: [S, B, ..., C] or None.
    """

    x: Array
    base: Array | None
    slots: Array | None


def combine(*terms: tuple[float, Weights]) -> Weights:
    """Σ factor · weights."""
    total: Weights = {}
    for factor, weights in terms:
        for name, value in weights.items():
            total[name] = total.get(name, 0.0) + factor * value
    return total


def rows(calls: Sequence[Call]) -> Rows:
    """Stacks the calls of a run into arrays."""
    slots = 1 + max((call.store for call in calls if call.store is not None), default=-1)
    columns: dict[str | int, int] = {"x": 0, "base": 1, "m": 2} | {slot: 3 + slot for slot in range(slots)}

    def table(terms: list[Weights]) -> np.ndarray:
        weights = np.zeros((len(terms), 3 + slots))
        for row, term in enumerate(terms):
            for name, value in term.items():
                weights[row, columns[name]] = value
        return weights

    def column(values: list[float]) -> np.ndarray | None:
        return np.array(values) if any(values) else None

    placed = [call.point for call in calls]
    if any(call.step is not None for call in calls):
        placed = [call.point._replace(step_kappa=(call.step or call.point).kappa) for call in calls]
    noise_before = column([call.noise_before for call in calls])
    return Rows(
        point=jax.tree.map(lambda *fields: np.array(fields, dtype=np.float64), *placed),
        x0=np.array([call.x0 for call in calls]),
        epsilon=np.array([call.epsilon for call in calls]),
        x=table([call.x for call in calls]),
        base=table([call.base for call in calls]) if any("base" in call.x for call in calls) else None,
        store=np.array([slots if call.store is None else call.store for call in calls]) if slots else None,
        noise=column([call.noise for call in calls]),
        scale_before=None if noise_before is None else np.array([call.scale_before for call in calls]),
        noise_before=noise_before,
    )


def pick(point: Point, k: int) -> Point:
    """Point k of a grid of points."""
    return jax.tree.map(lambda field: field[k], point)


class GeneralLinear(GridSampler[Rows, State]):
    """The loop's half of a general linear method; a subclass writes the calls in `plan`."""

    def init(self, x: Array, plan: Rows) -> State:
        slots = plan.x.shape[1] - 3
        return State(
            x=x,
            base=None if plan.base is None else x,
            slots=jnp.zeros((slots, *x.shape), x.dtype) if slots else None,  # S, B, ..., C
        )

    def step(self, state: State, row: Rows, denoise: Denoise, draw: DrawNoise) -> State:
        x = state.x
        if row.noise_before is not None:
            x = row.scale_before * x + row.noise_before * draw(1)
        denoised = denoise(x, row.point)
        m = row.x0 * denoised.x0 + row.epsilon * denoised.epsilon  # B, ..., C

        def linear(weights: Array) -> Array:
            total = weights[0] * x + weights[2] * m
            if state.base is not None:
                total = total + weights[1] * state.base
            if state.slots is not None:
                # A product and a sum, not a matrix product, which accelerators round to fewer bits.
                total = total + jnp.sum(align(weights[3:], state.slots) * state.slots, axis=0)
            return total

        next_x = linear(row.x)
        if row.noise is not None:
            next_x = next_x + row.noise * draw(0)
        base = None if row.base is None else linear(row.base)
        slots = state.slots
        if slots is not None:
            slots = slots.at[row.store].set(m, mode="drop")
        return State(next_x, base, slots)
