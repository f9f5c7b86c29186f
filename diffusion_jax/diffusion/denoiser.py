"""The one interface between trained networks and samplers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion_jax.diffusion.point import Array, Point, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.transforms import Transform

# What a network is told beside x and the time: a pytree of arrays [B, ...], which nothing here looks into.
Condition = Any
# (x [B, ..., C], timestep [B], condition) -> [B, ..., output channels]
Model = Callable[[Array, Array, Condition], Array]
# (x, point, cond) -> raw output: a model that takes a point of the path instead of a timestep.
Network = Callable[[Array, Point, Condition], Array]
# (x, point) -> raw output: a network whose conditions are settled.
Guided = Callable[[Array, Point], Array]


class Denoised(NamedTuple):
    """What a network believes about x.

    Attributes:
      x0: [B, ..., C] the predicted data.
      epsilon: [B, ..., C] the predicted noise; x = αx_0 + σε holds.
      log_variance: of the ancestral step, [B, ..., C] or scalar; None at points without a transition.
      gradient: [B, ..., C] scaled gradient at x of a classifier's log-probability, not yet applied to the rest; None
        without classifier guidance.
      guided_x0: [B, ..., C] the predicted data with the gradient in it, corrected by the transforms; None where there
        is no gradient, or no transform to keep it in bounds.
    """

    x0: Array
    epsilon: Array
    log_variance: Array | None = None
    gradient: Array | None = None
    guided_x0: Array | None = None


Denoise = Callable[[Array, Point], Denoised]


def network(model: Model) -> Network:
    """Lets a model be called at a point of the path; the output has the dtype of x, whatever the model computes in."""

    def call(x: Array, point: Point, cond: Condition) -> Array:
        timestep = jnp.broadcast_to(point.timestep, x.shape[:1]).astype(x.dtype)  # B
        return model(x, timestep, cond).astype(x.dtype)

    return call


def conditional(model: Model, cond: Condition = None) -> Guided:
    """The model under one condition, without guidance."""
    call = network(model)
    return lambda x, point: call(x, point, cond)


def denoiser(guided: Guided, prediction: Prediction, transforms: tuple[Transform, ...] = ()) -> Denoise:
    """Turns raw network outputs into predictions of data and noise.

    Args:
      guided: gives the raw output at (x, point): `conditional`, or a guidance of `diffusion.guidance`.
      prediction: what the output means.
      transforms: applied in order to the predicted data; the noise is then derived again from the result.

    Returns:
      A function of (x [B, ..., C], point with scalar or [B] fields).
    """

    def denoise(x: Array, point: Point) -> Denoised:
        network_x, network_time = prediction.network_inputs(x, point)
        mean, variance_output = prediction.split(guided(network_x, point._replace(timestep=network_time)))
        x0 = prediction.to_x0(mean, x, point)
        if transforms:
            for transform in transforms:
                x0 = transform(x0, point)
            epsilon = Prediction("x0").to_epsilon(x0, x, point)
        else:
            epsilon = prediction.to_epsilon(mean, x, point)
        log_variance = None
        if point.transition is not None:
            log_variance = prediction.log_variance(variance_output, align(point.transition, x))
        return Denoised(x0, epsilon, log_variance)

    return denoise


def with_gradient(
    found: Denoised, gradient: Array, x: Array, point: Point, transforms: tuple[Transform, ...] = ()
) -> Denoised:
    """Adds a gradient to those that guide already.

    Args:
      found: what the network believes about x.
      gradient: [B, ..., C] scaled gradient of a log-probability at x.
      x: [B, ..., C].
      point: where x lies.
      transforms: those of the denoiser. Near α = 0 the data move by the gradient over α, far out of their range.
    """
    gradient = gradient if found.gradient is None else found.gradient + gradient
    if not transforms:
        return found._replace(gradient=gradient, guided_x0=None)
    at = align(point, x)
    # Where no signal is left, x says nothing about its class.
    gain = jnp.where(at.alpha > 0, at.sigma**2 / jnp.where(at.alpha > 0, at.alpha, 1), 0)
    x0 = found.x0 + gain * gradient
    for transform in transforms:
        x0 = transform(x0, point)
    return found._replace(gradient=gradient, guided_x0=x0)


def apply_gradient(denoise: Denoise) -> Denoise:
    """Adds a classifier's gradient g to the score: ε̂ −= σg, with x̂_0 to match (Dhariwal & Nichol 2021, algorithm 2)."""

    def guided(x: Array, point: Point) -> Denoised:
        found = denoise(x, point)
        if found.gradient is None:
            return found
        if found.guided_x0 is not None:
            epsilon = Prediction("x0").to_epsilon(found.guided_x0, x, point)
            return found._replace(x0=found.guided_x0, epsilon=epsilon, gradient=None, guided_x0=None)
        at = align(point, x)
        return found._replace(
            x0=found.x0 + at.sigma**2 / at.alpha * found.gradient,
            epsilon=found.epsilon - at.sigma * found.gradient,
            gradient=None,
        )

    return guided


def reversed_time(model: Model) -> Model:
    """A velocity network that counts time from noise to data (the SiT release), as one of this library."""
    return lambda x, timestep, cond: -model(x, 1 - timestep, cond)
