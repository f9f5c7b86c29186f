"""Closed-form models: no network, exact answers."""

import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoise, Denoised, conditional, denoiser
from diffusion_jax.diffusion.grids import karras_kappa
from diffusion_jax.diffusion.point import Point, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, DDPM
from diffusion_jax.diffusion.samplers.base import GridSampler
from diffusion_jax.diffusion.samplers.general_linear import GeneralLinear
from diffusion_jax.diffusion.transforms import clip


def to_nhwc(array: np.ndarray) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(array, -3, -1)


def reference_model(constants: dict, learns_variance: bool = False) -> Callable:
    """The closed-form network of the golden files: tanh(a x + b t/1000), and sin(c x − d t/1000) as variance."""

    def model(x, timestep, cond=None):
        t = timestep.reshape(-1, *[1] * (x.ndim - 1)) / 1000
        shift = 0.0 if cond is None else cond.reshape(t.shape)
        output = jnp.tanh(constants["a"] * x + constants["b"] * t + shift)
        if not learns_variance:
            return output
        return jnp.concatenate([output, jnp.sin(constants["c"] * x - constants["d"] * t)], axis=-1)

    return model


def from_x0(x0: Callable[[jax.Array, Point], jax.Array]) -> Denoise:
    """A denoiser from a formula for the predicted data."""

    def denoise(x, point):
        aligned = align(point, x)
        data = x0(x, aligned)
        return Denoised(data, (x - aligned.alpha * data) / aligned.sigma)

    return denoise


@functools.cache
def gaussian(mean: float = 0.5, std: float = 0.25) -> Denoise:
    """The ideal denoiser of N(mean, std²), without a division by σ.

    x̂_0 = mean + k (x − α mean) with k = α std²/(α² std² + σ²), and ε̂ = σ (x − α mean)/(α² std² + σ²).
    """

    def denoise(x, point):
        at = align(point, x)
        residual = (x - at.alpha * mean) / (at.alpha**2 * std**2 + at.sigma**2)
        return Denoised(mean + at.alpha * std**2 * residual, at.sigma * residual)

    return denoise


def mixture(x: jax.Array, point: Point) -> Denoised:
    """The ideal denoiser of 0.4 N(−1, 0.3²) + 0.6 N(0.8, 0.5²)."""
    at = align(point, x)
    log_weights, data, noise = [], [], []
    for weight, mean, std in ((0.4, -1.0, 0.3), (0.6, 0.8, 0.5)):
        variance = at.alpha**2 * std**2 + at.sigma**2
        residual = (x - at.alpha * mean) / variance
        log_weights.append(jnp.log(weight) - 0.5 * jnp.log(variance) - 0.5 * (x - at.alpha * mean) * residual)
        data.append(mean + at.alpha * std**2 * residual)
        noise.append(at.sigma * residual)
    share = jax.nn.softmax(jnp.stack(log_weights), axis=0)
    return Denoised(jnp.sum(share * jnp.stack(data), axis=0), jnp.sum(share * jnp.stack(noise), axis=0))


class ScheduledPath:
    """A variance-preserving path known at given noise levels only: what a diffusers scheduler sees.

    The nodes are equally spaced in time, down to time 0 if the last level is 0.

    Args:
      sigmas: [N + 1] noise levels κ, descending.
      timesteps: [N] what the network receives.
    """

    name, chain_length, time_min, time_max = "scheduled", None, 0.0, 1.0

    def __init__(self, sigmas: np.ndarray, timesteps: np.ndarray):
        self.kappa = np.asarray(sigmas)
        self.timesteps = np.append(np.asarray(timesteps, dtype=np.float64), 0.0)
        self.times = np.linspace(1.0, 0.0 if self.kappa[-1] == 0 else 0.1, len(self.kappa))

    def point(self, time: np.ndarray) -> Point:
        node = np.abs(self.times - np.asarray(time)[..., None]).argmin(axis=-1)
        np.testing.assert_allclose(self.times[node], time, atol=1e-12)
        kappa = self.kappa[node]
        alpha = 1 / np.sqrt(1 + kappa**2)
        return Point(time, alpha, kappa * alpha, 0 * alpha, 0 * alpha, self.timesteps[node])


# Exact ends of the ODE for `mixture`: VP path, t from 1 to 0.05, starts −2, −1.5, …, 2.
MIXTURE_ENDS = np.array(
    [
        -1.525883635,
        -1.315586463,
        -1.075246220,
        -0.734646892,
        0.282937716,
        0.769127239,
        1.116289733,
        1.423878566,
        1.713897345,
    ]
)


@functools.cache
def reference_denoise(constants: tuple, prediction: Prediction, clipped: bool = False) -> Denoise:
    """The denoiser of the golden files' network; the same object for the same arguments, so programs are shared."""
    model = reference_model(dict(constants), prediction.learns_variance)
    return denoiser(conditional(model), prediction, (clip,) if clipped else ())


def golden_denoise(config: dict, prediction: Prediction, clipped: bool = False) -> Denoise:
    """`reference_denoise` with the constants of a golden file."""
    return reference_denoise(tuple(sorted(config["model"].items())), prediction, bool(clipped))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _walk(machine: GridSampler, denoise: Denoise, plan, x: jax.Array, noise: jax.Array) -> jax.Array:
    def body(state, item):
        row, z = item
        state = machine.step(state, row, denoise, lambda stage: z[stage])
        return state, state.x

    return jax.lax.scan(body, machine.init(x, plan), (plan, noise))[1]


def _padded(plan, length: int):
    """A plan with rows that change nothing, so that one program serves runs of different lengths."""
    rows = len(plan.point.time)
    plan = jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], length - rows, axis=0)]), plan)
    identity = {"noise": 0.0, "noise_before": 0.0, "scale_before": 1.0, "x": 1.0, "epsilon": 0.0, "corrects": 0.0}
    for name, value in identity.items():
        field = getattr(plan, name, None)
        if field is not None and field.ndim == 1:
            field[rows:] = value
        elif field is not None:
            field[rows:] = np.eye(field.shape[1])[0]
    if plan.point.transition is not None:
        plan.point.transition.x0_weight[rows:] = 0.0
        plan.point.transition.x_weight[rows:] = 1.0
    return plan


def walk(sampler, path, denoise: Denoise, x, noise=None, times=None, dtype=np.float64) -> np.ndarray:
    """The states after each network call [rows, B, ...] of a sampler with a plan.

    The loop is that of `GridSampler.walk` with the plan as an argument, so that tests share compiled programs.

    Args:
      noise: [rows, B, ...], or [rows, 2, B, ...] with both stages, the noise of each row; None means none.
      times: the grid; None means the sampler's own.
      dtype: float64 or float32.
    """
    plan = sampler.checked_plan(path, sampler.times(path) if times is None else times)
    rows = len(plan.point.time)
    length = next(size for size in (24, 96, 384, 1536) if size >= rows)
    # What these samplers do is all in the plan.
    machine = DDIM() if isinstance(sampler, GeneralLinear) else DDPM() if isinstance(sampler, DDPM) else sampler
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(x, dtype)
        table = np.zeros((length, 2, *x.shape))
        if noise is not None:
            noise = np.asarray(noise)
            table[:rows] = noise[:rows] if noise.ndim > x.ndim + 1 else noise[:rows, None]
        plan = jax.tree.map(
            lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else jnp.int32), _padded(plan, length)
        )
        return np.asarray(_walk(machine, denoise, plan, x, jnp.asarray(table, dtype)))[:rows]


def gaussian_moments(sampler, path, denoise: Denoise, std: float | None = None, times=None) -> tuple[float, float]:
    """Exact mean and standard deviation of what an affine sampler returns, by running it on unit impulses.

    The sample is A x + Σ_k C_k z_k + B in the start x and the noise z_k of each step; a batch of runs, each with one
    of them set to 1, gives every coefficient.

    Args:
      std: standard deviation of the start; None means the path's prior at the first time.
    """
    times = sampler.times(path) if times is None else times
    plan = sampler.checked_plan(path, times)
    fields = [getattr(plan, name, None) for name in ("noise", "noise_before")]
    used = [(stage, row) for stage, field in enumerate(fields) if field is not None for row in np.flatnonzero(field)]
    rows = len(plan.point.time)
    x = np.zeros((2 + len(used), 1, 1, 1))
    x[1] = 1.0
    noise = np.zeros((rows, 2, *x.shape))
    for impulse, (stage, row) in enumerate(used):
        noise[row, stage, 2 + impulse] = 1.0
    end = walk(sampler, path, denoise, x, noise, times)[-1].ravel()
    std = path.prior_std(float(times[0])) if std is None else std
    variance = (std * (end[1] - end[0])) ** 2 + np.sum((end[2:] - end[0]) ** 2)
    return float(end[0]), float(np.sqrt(variance))


@pytest.fixture(scope="session")
def kit():
    """The closed-form models and their helpers."""
    return types.SimpleNamespace(
        to_nhwc=to_nhwc,
        reference_model=reference_model,
        from_x0=from_x0,
        gaussian=gaussian,
        mixture=mixture,
        MIXTURE_ENDS=MIXTURE_ENDS,
        gaussian_moments=gaussian_moments,
        golden_denoise=golden_denoise,
        ScheduledPath=ScheduledPath,
        karras_kappa=karras_kappa,
        walk=walk,
    )
