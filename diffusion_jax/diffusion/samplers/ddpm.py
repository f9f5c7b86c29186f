"""Ancestral sampling (Ho et al. 2020, algorithm 2)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.denoiser import Denoise
from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.diffusion.posterior import transitions
from diffusion_jax.diffusion.samplers.base import DrawNoise, GridSampler, points


class Rows(NamedTuple):
    """One row per step: where it starts (with its transition), and 0 where no noise is added."""

    point: Point
    noise: Array


class State(NamedTuple):
    """The sample so far."""

    x: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(GridSampler[Rows, State]):
    """DDPM: draws x_s from N(c_1 x̂_0 + c_2 x_t, V), V of the prediction's variance; no noise in the last step.

    Order 1 (weak), one call per step. With learned variances good from about 100 steps, with fixed ones nearer 1000.
    On a discrete path the default grid is ADM's ("250" keeps the first and the last timestep), and β and the bounds of
    a learned variance are those of the shortened chain.
    """

    steps: int = 250
    name: ClassVar[str] = "ddpm"
    order: ClassVar[str] = "1 (weak)"
    calls: ClassVar[str] = "N"
    purpose: ClassVar[str] = "DiT's 250 steps; learned variances; classifier guidance as in ADM"
    uses_gradient: ClassVar[bool] = True
    default_grids: ClassVar[tuple[str, str]] = ("adm", "time")

    def plan(self, path: Path, times: np.ndarray) -> Rows:
        grid = points(path, times)
        noisy, clean = (jax.tree.map(lambda field, s=s: field[s], grid) for s in (slice(None, -1), slice(1, None)))
        noise = np.ones(len(times) - 1)
        noise[-1] = 0.0
        return Rows(noisy._replace(transition=transitions(noisy, clean)), noise)

    def init(self, x: Array, plan: Rows) -> State:
        return State(x)

    def step(self, state: State, row: Rows, denoise: Denoise, draw: DrawNoise) -> State:
        transition = row.point.transition
        assert transition is not None
        denoised = denoise(state.x, row.point)
        assert denoised.log_variance is not None
        mean = transition.x0_weight * denoised.x0 + transition.x_weight * state.x
        if denoised.gradient is not None:
            # Classifier guidance shifts the mean by V g (Dhariwal & Nichol 2021, algorithm 1).
            mean = mean + jnp.exp(denoised.log_variance) * denoised.gradient
        return State(mean + row.noise * jnp.exp(0.5 * denoised.log_variance) * draw(0))
