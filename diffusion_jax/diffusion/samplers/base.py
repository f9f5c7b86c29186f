"""The one sampling loop: a `lax.scan` over coefficients made on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Denoise, apply_gradient
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError


class SamplerRows(Protocol):
    """The coefficients of a sampler, a NamedTuple of arrays [rows, ...]; row k serves the k-th network call."""

    @property
    def point(self) -> Point:
        """Where the network is evaluated."""

    def _replace(self, *args: Any, **fields: Any) -> Self: ...


class SamplerState(Protocol):
    """What the loop of a sampler carries, a NamedTuple."""

    @property
    def x(self) -> Array:
        """[B, ..., C], the sample so far."""


Rows = TypeVar("Rows", bound=SamplerRows)
State = TypeVar("State", bound=SamplerState)

# stage -> standard normal noise [B, ..., C] of this step
DrawNoise = Callable[[int], Array]
# (step, stage) -> standard normal noise [B, ..., C]
Noise = Callable[[Array, int], Array]


class Progress(NamedTuple):
    """How far the walk of each sample came, where the sampler chooses its steps.

    Attributes:
      time: [B] the time reached.
      finished: [B] bool, whether that is the end.
      stuck: [B] bool, whether its steps were not finite, or too small to ever arrive.
    """

    time: Array
    finished: Array
    stuck: Array


class Walk(NamedTuple):
    """What a sampler returns.

    Attributes:
      x: [B, ..., C] the samples.
      states: [rows, B, ..., C] the states on the way.
      progress: how far each sample came; None for a fixed number of steps, which always arrive.
    """

    x: Array
    states: Array
    progress: Progress | None = None


class Sampler(Protocol):
    """A walk from noise to data.

    Attributes:
      name: the key of the sampler in `SAMPLERS`.
      order: its order of convergence.
      calls: network calls of N steps.
      purpose: what it is for.
      adaptive: whether it chooses its steps, and so may stop before it arrives.
    """

    name: ClassVar[str]
    order: ClassVar[str]
    calls: ClassVar[str]
    purpose: ClassVar[str]
    adaptive: ClassVar[bool]

    def times(self, path: Path) -> np.ndarray:
        """The nodes visited, float64; the first is where sampling starts, the last where it ends."""
        ...

    def check(self, path: Path) -> None:
        """Raises a `UserError` if the sampler does not apply to the path."""
        ...

    def walk(self, path: Path, denoise: Denoise, x: Array, noise: Noise, times: np.ndarray | None = None) -> Walk:
        """The samples, the states on the way, and how far each came."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSampler(Generic[Rows, State]):
    """A sampler with a fixed number of steps, which evaluates the network once per row of its plan.

    Attributes:
      steps: the number of steps.
      grid: where they lie, a name of `grids.GRIDS`; None means the sampler's default for the kind of path.
      final: where the last step ends: clean `data`, the `first` trained timestep, or `none` (the grid's last node).
      time_start: where a continuous grid starts; None means the path's largest time.
      time_end: where its nodes end; None means the path's smallest time.
      rho: the exponent of grid `karras`.
      shift: the a of t' = a t/(1 + (a − 1) t) on continuous grids; above 1 for more steps at high noise.

    Raises:
      UserError: an unknown name; when planned, a grid that the path does not have.
    """

    steps: int = 50
    grid: str | None = None
    final: grids.Final = "data"
    time_start: float | None = None
    time_end: float | None = None
    rho: float = 7.0
    shift: float = 1.0

    name: ClassVar[str]
    order: ClassVar[str]
    calls: ClassVar[str]
    purpose: ClassVar[str]
    # the default grid on a discrete and on a continuous path
    default_grids: ClassVar[tuple[str, str]] = ("trailing", "time")
    adaptive: ClassVar[bool] = False
    # whether the step itself adds the gradient of a classifier
    uses_gradient: ClassVar[bool] = False

    def __post_init__(self):
        check_choice(f"sampler '{self.name}' final", self.final, grids.Final)
        if self.shift <= 0:
            raise UserError(f"sampler '{self.name}': shift must be positive, not {self.shift}")

    def grid_steps(self) -> int:
        """The number of steps of the grid."""
        return self.steps

    def times(self, path: Path) -> np.ndarray:
        """[grid_steps + 1] float64, descending."""
        grid = self.grid or self.default_grids[path.chain_length is None]
        return grids.times(
            path, grid, self.grid_steps(), self.final, self.time_start, self.time_end, self.rho, self.shift
        )

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        """A pytree of host arrays [rows, ...], sliced by the loop; row k serves the k-th network call."""
        raise NotImplementedError

    def init(self, x: Array, plan: Rows) -> State:
        """The loop's state before the first row."""
        raise NotImplementedError

    def step(self, state: State, row: Rows, denoise: Denoise, draw: DrawNoise) -> State:
        """The state after one network call."""
        raise NotImplementedError

    def checked_plan(self, path: Path, times: np.ndarray) -> Rows:
        """The plan, or a `UserError` if one of its coefficients is not finite."""
        with np.errstate(all="ignore"):
            plan = self.plan(path, times)
        coefficients = jax.tree.leaves(plan._replace(point=plan.point.transition))
        if not all(np.all(np.isfinite(leaf)) for leaf in coefficients):
            raise UserError(
                f"sampler '{self.name}' has no finite step on path '{path.name}' from t = {times[0]:.4g} to "
                f"{times[-1]:.4g}; choose time_start below 1 or time_end above 0"
            )
        return plan

    def check(self, path: Path) -> None:
        """Raises a `UserError` if the sampler does not apply to the path."""
        self.checked_plan(path, self.times(path))

    def walk(self, path: Path, denoise: Denoise, x: Array, noise: Noise, times: np.ndarray | None = None) -> Walk:
        """Runs the plan as one `lax.scan`."""
        plan = self.checked_plan(path, self.times(path) if times is None else times)
        plan = jax.tree.map(
            lambda a: jnp.asarray(a, x.dtype if np.issubdtype(a.dtype, np.floating) else jnp.int32), plan
        )
        if not self.uses_gradient:
            denoise = apply_gradient(denoise)

        def body(state: State, item: tuple[Array, Rows]) -> tuple[State, Array]:
            step, row = item
            state = self.step(state, row, denoise, lambda stage: noise(step, stage))
            return state, state.x

        rows = jax.tree.leaves(plan)[0].shape[0]
        state, trajectory = jax.lax.scan(body, self.init(x, plan), (jnp.arange(rows), plan))
        return Walk(state.x, trajectory)


def points(path: Path, times: np.ndarray) -> Point:
    """The path at every time of a grid, [N] float64 fields.

    A last time of 0 means clean data, on the variance-exploding path too, whose noise at t = 0 is small but not 0.
    """
    times = np.asarray(times, dtype=np.float64)
    point = path.point(times)
    data = (times == 0) & (np.arange(len(times)) == len(times) - 1)
    return point._replace(
        alpha=np.where(data, 1.0, point.alpha),
        sigma=np.where(data, 0.0, point.sigma),
        # Where the path itself does not reach the data, it has no velocity there.
        sigma_dot=np.where(data & (point.sigma > 0), np.inf, point.sigma_dot),
    )


def initial_noise(
    sampler: Sampler,
    path: Path,
    key: jax.Array,
    index: Array,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
    """Where sampling starts: noise of the path's prior scale at the sampler's first time.

    Args:
      sampler: decides the first time.
      path: decides the scale there.
      key: scalar key, another one than that of `sample`.
      index: [B] global sample indices.
      shape: of one sample, (H, W, C).
      dtype: floating type.

    Returns:
      [B, *shape]; row b depends on (`key`, `index[b]`) alone.
    """
    return path.prior_std(float(sampler.times(path)[0])) * keys.normal(key, index, shape, dtype)


def noise_source(key: jax.Array, index: Array, x: Array) -> Noise:
    """The noise of (step, stage) for samples `index`: row b depends on (key, step, stage, index[b]) alone."""

    def draw(step: Array, stage: int) -> Array:
        step_key = jax.random.fold_in(jax.random.fold_in(key, step), stage)
        return keys.normal(step_key, index, x.shape[1:], x.dtype)

    return draw


def walk(sampler: Sampler, path: Path, denoise: Denoise, x: Array, key: jax.Array, index: Array) -> Walk:
    """`sample` with the states on the way, and with how far each sample came in place of NaN."""
    return sampler.walk(path, denoise, x, noise_source(key, index, x))


def sample(sampler: Sampler, path: Path, denoise: Denoise, x: Array, key: jax.Array, index: Array) -> Array:
    """Draws samples; call it under `jax.jit`, where it is one compiled loop.

    Args:
      sampler: which walk.
      path: the process that the network was trained on.
      denoise: the network as a denoiser, guidance included.
      x: [B, ..., C] noise, from `initial_noise`.
      key: scalar key of the noise drawn on the way.
      index: [B] global sample indices.

    Returns:
      [B, ..., C]; row b depends on (`x[b]`, `key`, `index[b]`) alone, whatever the batch. NaN where a sampler that
      chooses its steps did not arrive.

    Raises:
      UserError: the sampler does not apply to the path, or its grid does not exist there.
    """
    x, _, progress = walk(sampler, path, denoise, x, key, index)
    return x if progress is None else jnp.where(align(progress.finished, x), x, jnp.nan)


def check_sampling(sampler: Sampler, path: Path, prediction: Prediction, corrected: bool = False) -> None:
    """Fails early, before anything is compiled.

    Args:
      sampler: the walk.
      path: the process.
      prediction: what the network predicts.
      corrected: whether the predicted data are corrected on the way, and the noise derived again from them.

    Raises:
      UserError: the sampler does not apply to the path, the prediction says nothing about the data where it starts, or
        the noise is 0/0 where the sampler ends and evaluates the network.
    """
    sampler.check(path)
    start, end = (float(time) for time in sampler.times(path)[[0, -1]])
    if sampler.adaptive and (corrected or prediction.kind == "x0") and path.point(np.float64(end)).sigma == 0:
        data = "data that sample.transform has corrected" if corrected else "predicted data"
        raise UserError(
            f"sampler '{sampler.name}' needs the noise at its end, t = {end:.4g}, where path '{path.name}' has none "
            f"and {data} do not give it: set sampler.time_end=0.005 and sampler.denoise_last=True"
            + (", or sample.transform='none'" if corrected else "")
        )
    if path.point(np.float64(start)).alpha == 0 and prediction.kind in ("epsilon", "score", "edm"):
        raise UserError(
            f"sampler '{sampler.name}': path '{path.name}' has no signal at t = {start:.4g}, where a prediction of "
            f"kind '{prediction.kind}' says nothing about the data; set the path's time_max below 1, or use a network "
            "that predicts velocity, v or x0"
        )
