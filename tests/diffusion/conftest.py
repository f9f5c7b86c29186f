"""Closed-form models: no network, exact answers."""

import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoise, Denoised
from diffusion_jax.diffusion.point import Point, align
from diffusion_jax.diffusion.samplers import run


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


def gaussian(mean: float = 0.5, std: float = 0.25) -> Denoise:
    """The ideal denoiser of N(mean, std²): D(x) = mean + k (x − α mean), k = α std² / (α² std² + σ²)."""

    def x0(x, point):
        k = point.alpha * std**2 / (point.alpha**2 * std**2 + point.sigma**2)
        return mean + k * (x - point.alpha * mean)

    return from_x0(x0)


def gaussian_moments(sampler, path, denoise: Denoise, std: float | None = None, times=None) -> tuple[float, float]:
    """Exact mean and standard deviation of what an affine sampler returns, by running it on unit impulses.

    The sample is A x + Σ_k C_k z_k + B in the start x and the noise z_k of each step; a batch of 2 + rows runs, each
    with one of them set to 1, gives every coefficient.

    Args:
      std: standard deviation of the start; None means the path's prior at the first time.
    """
    times = sampler.times(path) if times is None else times
    plan = sampler.plan(path, times)
    impulses = 0 if plan.noise is None else len(plan.noise)
    std = path.prior_std(float(times[0])) if std is None else std
    with jax.enable_x64(True):
        x = jnp.zeros((2 + impulses, 1, 1, 1)).at[1].set(1.0)

        def noise(step, stage):
            assert stage == 0
            return jnp.zeros(x.shape).at[2 + step].set(1.0, mode="drop")

        end = jax.jit(lambda x: run(sampler, path, denoise, x, noise, times)[0])(x).ravel()
        end = np.asarray(end)
    variance = (std * (end[1] - end[0])) ** 2 + np.sum((end[2:] - end[0]) ** 2)
    return float(end[0]), float(np.sqrt(variance))


def _run(dtype, sampler, path, denoise, x, noise, times) -> np.ndarray:
    x = jnp.asarray(x, dtype)
    table = None if noise is None else jnp.asarray(noise, dtype)

    def draw(step, stage):
        return jnp.zeros_like(x) if table is None else table[step]

    return np.asarray(jax.jit(lambda x: run(sampler, path, denoise, x, draw, times)[1])(x))


def run_float64(sampler, path, denoise, x, noise=None, times=None) -> np.ndarray:
    """The trajectory [rows, ...] of a sampler in float64; `noise` [rows, ...] is the noise of each row."""
    with jax.enable_x64(True):
        return _run(jnp.float64, sampler, path, denoise, x, noise, times)


def run_float32(sampler, path, denoise, x, noise=None, times=None) -> np.ndarray:
    """As `run_float64`, in float32."""
    return _run(jnp.float32, sampler, path, denoise, x, noise, times)


@pytest.fixture(scope="session")
def kit():
    """The closed-form models and their helpers."""
    return types.SimpleNamespace(
        to_nhwc=to_nhwc,
        reference_model=reference_model,
        from_x0=from_x0,
        gaussian=gaussian,
        gaussian_moments=gaussian_moments,
        run_float32=run_float32,
        run_float64=run_float64,
    )
