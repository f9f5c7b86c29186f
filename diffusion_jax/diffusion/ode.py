"""An adaptive Runge-Kutta integrator in which every sample of the batch has its own step size."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.point import Array, align

# Dormand & Prince 1980, RK5(4)7M: stage times, stage weights, and the difference of the two solutions.
_C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
_A = np.zeros((7, 7))
_A[1, :1] = [1 / 5]
_A[2, :2] = [3 / 40, 9 / 40]
_A[3, :3] = [44 / 45, -56 / 15, 32 / 9]
_A[4, :4] = [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729]
_A[5, :5] = [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656]
_A[6, :6] = [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]
_ERROR = _A[6] - np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])

State = TypeVar("State")
# y, time [B], step size [B], slope, attempts
Carry = tuple[State, Array, Array, State, Array]

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0


class Solution(NamedTuple, Generic[State]):
    """Where the integration ended.

    Attributes:
      y: the state, leaves [B, ...].
      time: [B] the time reached.
      finished: [B] bool, whether that is the end.
      stuck: [B] bool, whether a sample gave up since its steps were not finite or below the resolution of time; one
        that is neither stuck nor finished ran out of max_steps.
      steps: scalar int, step attempts of the slowest sample.
    """

    y: State
    time: Array
    finished: Array
    stuck: Array
    steps: Array


def too_small(h: Array, span: float) -> Array:
    """Whether steps [B] are not finite, or so small that the interval `span` would take 1/ε of them."""
    return ~(h >= float(jnp.finfo(h.dtype).eps) * span)  # of NaN too


def error_ratio(error: State, before: State, after: State, rtol: float, atol: float) -> Array:
    """Root mean square over all entries of a sample of error/(atol + rtol · max|y|): [B]."""

    def squares(e: Array, a: Array, b: Array) -> tuple[Array, int]:
        scaled = (e / (atol + rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))).reshape(e.shape[0], -1)
        return jnp.sum(scaled**2, axis=1), scaled.shape[1]

    parts = [
        squares(e, a, b)
        for e, a, b in zip(jax.tree.leaves(error), jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    total = sum((part for part, _ in parts[1:]), parts[0][0])
    return jnp.sqrt(total / sum(size for _, size in parts))


def dopri5(
    velocity: Callable[[State, Array], State],
    y: State,
    start: float,
    end: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Solution[State]:
    """Integrates dy/dt = velocity(y, t) with the Dormand-Prince pair of orders 5 and 4.

    Each sample accepts, rejects and stretches its own steps, so its result does not depend on its batch; the program
    runs until the slowest sample is done or has given up. Six evaluations per step.

    Args:
      velocity: (y, t [B]) -> dy/dt, leaves [B, ...].
      y: the state at `start`, leaves [B, ...].
      start: the first time.
      end: the last time, before or after `start`.
      rtol: relative tolerance.
      atol: absolute tolerance.
      max_steps: bound on step attempts.

    Returns:
      The state at `end`, or at the time that was reached.
    """
    leaf = jax.tree.leaves(y)[0]
    batch, dtype = leaf.shape[0], leaf.dtype
    direction = 1.0 if end > start else -1.0
    a, c, e = (jnp.asarray(table, dtype) for table in (_A, _C, _ERROR))
    time = jnp.full(batch, start, dtype)
    h = jnp.full(batch, 0.01 * abs(end - start), dtype)
    slope = velocity(y, time)
    # Times closer than this to the end are the end.
    resolution = 8 * float(jnp.finfo(dtype).eps) * abs(end - start)

    def weighted(weights: Array, slopes: State) -> State:
        # A product and a sum, not a matrix product, which accelerators round to fewer bits.
        return jax.tree.map(lambda k: jnp.sum(align(weights, k) * k, axis=0), slopes)

    def move(y: State, h: Array, rate: State) -> State:
        return jax.tree.map(lambda u, v: u + align(direction * h, u) * v, y, rate)

    def remaining(time: Array) -> Array:
        return direction * (end - time)

    def stuck(time: Array, h: Array) -> Array:
        return (remaining(time) > resolution) & too_small(h, abs(end - start))

    def unfinished(carry: Carry) -> Array:
        _, time, h, _, attempts = carry
        return jnp.any((remaining(time) > resolution) & ~stuck(time, h)) & (attempts < max_steps)

    def attempt(carry: Carry) -> Carry:
        y, time, h, slope, attempts = carry
        alive = ~stuck(time, h)  # a sample that gave up stays where it is, however long the others take
        h = jnp.minimum(h, remaining(time).clip(0))
        slopes = jax.tree.map(lambda k: jnp.zeros((7, *k.shape), k.dtype).at[0].set(k), slope)  # 7, B, ...

        def stage(i: Array, slopes: State) -> State:
            k = velocity(move(y, h, weighted(a[i], slopes)), time + direction * c[i] * h)
            return jax.tree.map(lambda all_k, k: all_k.at[i].set(k), slopes, k)

        slopes = jax.lax.fori_loop(1, 7, stage, slopes)
        proposal = move(y, h, weighted(a[6], slopes))
        error = jax.tree.map(lambda v: align(h, v) * v, weighted(e, slopes))
        ratio = error_ratio(error, y, proposal, rtol, atol)
        accept = (ratio <= 1) & (h > 0) & alive
        factor = jnp.clip(SAFETY * jnp.maximum(ratio, 1e-10) ** -0.2, SMALLEST, LARGEST)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(align(accept, new), new, old)

        last = jax.tree.map(lambda k: k[6], slopes)  # the first stage of the next step
        landed = jnp.where(remaining(time) - h <= resolution, end, time + direction * h)
        return (
            jax.tree.map(choose, proposal, y),
            jnp.where(accept, landed, time),
            jnp.where((h > 0) & alive, h * factor, h),
            jax.tree.map(choose, last, slope),
            attempts + 1,
        )

    y, time, h, _, attempts = jax.lax.while_loop(unfinished, attempt, (y, time, h, slope, jnp.int32(0)))
    return Solution(y, time, remaining(time) <= resolution, stuck(time, h), attempts)
