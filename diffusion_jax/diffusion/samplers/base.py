"""The one sampling loop: a `lax.scan` over coefficients made on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Denoise
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point

# stage -> standard normal noise [B, ..., C] of this step
Draw = Callable[[int], Array]


class Sampler(Protocol):
    """A walk from noise to data that evaluates the network once per row of its plan."""

    def times(self, path: Path) -> np.ndarray:
        """The nodes visited, float64, descending; the first is where the noise starts."""
        ...

    def plan(self, path: Path, times: np.ndarray) -> Any:
        """A pytree of host arrays [rows, ...], sliced by the loop; row k serves the k-th network call."""
        ...

    def init(self, x: Array, plan: Any) -> Any:
        """The loop's state before the first row; the field `x` of it is the sample so far."""
        ...

    def step(self, state: Any, row: Any, denoise: Denoise, draw: Draw) -> Any:
        """The state after one network call."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSampler:
    """The options that all samplers with a fixed number of steps share.

    Attributes:
      steps: the number of steps.
      grid: where they lie, a name of `grids.GRIDS`; None means the sampler's default for the kind of path.
      final: where the last step ends: clean `data`, the `first` trained timestep, or `none` (the grid's last node).
      time_start: where a continuous grid starts; None means the path's largest time.
      time_end: where its nodes end; None means the path's smallest time.
      rho: the exponent of grid `karras`.

    Raises:
      UserError: an unknown name; when planned, a grid that the path does not have.
    """

    steps: int = 50
    grid: str | None = None
    final: grids.Final = "data"
    time_start: float | None = None
    time_end: float | None = None
    rho: float = 7.0

    # the default grid on a discrete and on a continuous path
    default_grids: ClassVar[tuple[str, str]] = ("trailing", "time")

    def __post_init__(self):
        check_choice("sampler final", self.final, grids.Final)

    def times(self, path: Path) -> np.ndarray:
        """[steps + 1] float64, descending."""
        grid = self.grid or self.default_grids[path.chain_length is None]
        return grids.times(path, grid, self.steps, self.final, self.time_start, self.time_end, self.rho)


def points(path: Path, times: np.ndarray) -> Point:
    """The path at every time of a grid, [N] float64 fields; at clean data the time derivatives mean nothing."""
    return path.point(np.asarray(times, dtype=np.float64))


def initial_noise(
    sampler: Sampler, path: Path, key: jax.Array, index: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
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


def noise_source(key: jax.Array, index: Array, x: Array) -> Callable[[Array, int], Array]:
    """The noise of (step, stage) for samples `index`: row b depends on (key, step, stage, index[b]) alone."""

    def draw(step: Array, stage: int) -> Array:
        step_key = jax.random.fold_in(jax.random.fold_in(key, step), stage)
        return keys.normal(step_key, index, x.shape[1:], x.dtype)

    return draw


def run(
    sampler: Sampler,
    path: Path,
    denoise: Denoise,
    x: Array,
    noise: Callable[[Array, int], Array],
    times: np.ndarray | None = None,
) -> tuple[Array, Array]:
    """The loop behind `sample`, with the noise and the grid in the caller's hands.

    Args:
      sampler, path, denoise, x: as in `sample`.
      noise: (step, stage) -> [B, ..., C] standard normal noise.
      times: nodes, descending; None means the sampler's own.

    Returns:
      The sample [B, ..., C], and the state after every network call [rows, B, ..., C].
    """
    plan = sampler.plan(path, sampler.times(path) if times is None else times)
    plan = jax.tree.map(lambda a: jnp.asarray(a, x.dtype if np.issubdtype(a.dtype, np.floating) else jnp.int32), plan)
    rows = jax.tree.leaves(plan)[0].shape[0]

    def body(state: Any, item: tuple[Array, Any]) -> tuple[Any, Array]:
        step, row = item
        state = sampler.step(state, row, denoise, lambda stage: noise(step, stage))
        return state, state.x

    state, trajectory = jax.lax.scan(body, sampler.init(x, plan), (jnp.arange(rows), plan))
    return state.x, trajectory


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
      [B, ..., C]; row b depends on (`x[b]`, `key`, `index[b]`) alone, whatever the batch.

    Raises:
      UserError: the sampler does not apply to the path, or its grid does not exist there.
    """
    return run(sampler, path, denoise, x, noise_source(key, index, x))[0]
