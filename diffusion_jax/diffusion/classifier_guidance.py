"""Guidance by the gradient of a log-probability (Dhariwal & Nichol 2021) or of a similarity (GLIDE).

The gradient joins the predictions as `Denoised.gradient`: ancestral sampling adds V g to its mean, every other sampler
takes ε̂ − σ g (docs/diffusion.md, eq. 9).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.denoiser import Denoise, Denoised, Model, Transform, network, with_gradient
from diffusion_jax.diffusion.point import Array, Point, align

# (x [B, ..., C], point) -> [B]
LogProbability = Callable[[Array, Point], Array]


def classifier_guidance(
    denoise: Denoise, log_probability: LogProbability, scale: float, transforms: tuple[Transform, ...] = ()
) -> Denoise:
    """Guides by a noise-aware classifier.

    Published scales (ADM): 1.0 at 64 px, 0.5 at 128, 1.0 at 256 (10.0 with an unconditional model), 4.0 at 512.

    Args:
      denoise: the denoiser to guide; may be guided already, gradients add up.
      log_probability: ln p(y | x_t, t) of the wanted y, one per sample.
      scale: factor of its gradient at x_t.
      transforms: those of `denoise`, which then hold for the guided data too.

    Returns:
      A denoiser.
    """
    gradient = jax.grad(lambda x, point: jnp.sum(log_probability(x, point)))
    return lambda x, point: with_gradient(denoise(x, point), scale * gradient(x, point), x, point, transforms)


def log_probability(classifier: Model, label: Array) -> LogProbability:
    """ln p(label | x_t, t) of a classifier of noisy data.

    Args:
      classifier: (x [B, ..., C], timestep [B], None) -> [B, K] logits.
      label: [B] int32 in 0…K−1, the wanted classes.
    """

    def value(x: Array, point: Point) -> Array:
        logits = network(classifier)(x, point, None)  # B, K
        return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]  # B

    return value


def prediction_guidance(
    denoise: Denoise,
    log_probability: LogProbability,
    scale: float,
    blend: bool = False,
    transforms: tuple[Transform, ...] = (),
) -> Denoise:
    """Guides by a function of clean data, differentiated through the predicted data.

    Args:
      denoise: the denoiser to guide.
      log_probability: ln p(y | x_0), e.g. −½‖y − T(decode(x_0))‖² of a measurement, or a CLIP similarity.
      scale: factor of its gradient with respect to x_t.
      blend: evaluate at σ x̂_0 + (1 − σ) x_t instead of x̂_0.
      transforms: those of `denoise`, which then hold for the guided data too.

    Returns:
      A denoiser.
    """

    def guided(x: Array, point: Point) -> Denoised:
        def value(x: Array) -> tuple[Array, Denoised]:
            found = denoise(x, point)
            sigma = align(point, x).sigma
            seen = sigma * found.x0 + (1 - sigma) * x if blend else found.x0
            return jnp.sum(log_probability(seen, point)), found

        gradient, found = jax.grad(value, has_aux=True)(x)
        return with_gradient(found, scale * gradient, x, point, transforms)

    return guided


def similarity(
    image_encoder: Callable[[Array, Array], Array], embedding: Array, log_temperature: float
) -> LogProbability:
    """e^τ ⟨f(x)/‖f(x)‖, c/‖c‖⟩ of CLIP guidance, in place of a log-probability.

    Args:
      image_encoder: (x [B, H, W, C], timestep [B]) -> [B, D]; noise-aware for `classifier_guidance`, and then free to
        ignore the timestep for `prediction_guidance`. Its preprocessing (pixels to 0…255 and the like) is its own.
      embedding: [B, D] caption embeddings c.
      log_temperature: τ.
    """

    def unit(vector: Array) -> Array:
        return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)

    def value(x: Array, point: Point) -> Array:
        timestep = jnp.broadcast_to(point.timestep, x.shape[:1]).astype(x.dtype)  # B
        features = image_encoder(x, timestep)  # B, D
        return jnp.exp(log_temperature) * jnp.sum(unit(features) * unit(embedding), axis=-1)  # B

    return value
