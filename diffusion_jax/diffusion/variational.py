"""The variational bound of discrete diffusion in bits per dimension (docs/diffusion.md, eq. 10)."""

import math

import jax.numpy as jnp
from jax.scipy.stats import norm

from diffusion_jax.diffusion.point import Array, Transition, align

BITS = 1 / math.log(2)
BIN = 1 / 255  # half the distance between two of 256 levels on [−1, 1]


def mean_over_dims(x: Array) -> Array:
    """Mean over all axes but the first: [B, ...] -> [B]."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def normal_kl(mean1: Array, log_variance1: Array, mean2: Array, log_variance2: Array) -> Array:
    """KL(N(mean1, e^{log_variance1}) ‖ N(mean2, e^{log_variance2})), elementwise, in nats."""
    return 0.5 * (
        -1.0
        + log_variance2
        - log_variance1
        + jnp.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2)
    )


def approx_normal_cdf(z: Array) -> Array:
    """The tanh approximation of Φ that the reference decoders use; its error is below 1.8e-4."""
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def decoder_probability(x0: Array, mean: Array, log_scale: Array, exact: bool = False) -> Array:
    """The probability that N(mean, scale²) falls in the bin of x0, one of 256 levels on [−1, 1]; outer bins are open.

    Args:
      x0: data on the 256-level grid in [−1, 1].
      mean: mean of the decoder.
      log_scale: ln of its standard deviation.
      exact: Φ itself instead of the reference's approximation.

    Returns:
      Probabilities with the shape of x0; they sum to 1 over the 256 levels.
    """
    cdf = norm.cdf if exact else approx_normal_cdf
    inverse = jnp.exp(-log_scale)
    upper = jnp.where(x0 > 0.999, 1.0, cdf((x0 + BIN - mean) * inverse))
    lower = jnp.where(x0 < -0.999, 0.0, cdf((x0 - BIN - mean) * inverse))
    return upper - lower


def decoder_nll(x0: Array, mean: Array, log_scale: Array, exact: bool = False) -> Array:
    """−ln of `decoder_probability`, floored at probability 1e-12 as in the reference; elementwise, in nats."""
    return -jnp.log(jnp.maximum(decoder_probability(x0, mean, log_scale, exact), 1e-12))


def vlb_term(
    x0: Array, x0_hat: Array, x: Array, log_variance: Array, transition: Transition, exact: bool = False
) -> Array:
    """L_n of the bound: KL(q(x_{n−1}|x_n,x_0) ‖ p(x_{n−1}|x_n)), at n = 0 the decoder's −ln p(x_0|x_1).

    Args:
      x0: [B, ..., C] data.
      x0_hat: [B, ..., C] predicted data.
      x: [B, ..., C] noisy data.
      log_variance: log-variance of p, broadcastable to x.
      transition: the step from n, [B] fields.
      exact: exact Φ in the decoder.

    Returns:
      [B] bits per dimension.
    """
    transition = align(transition, x)
    true_mean = transition.x0_weight * x0 + transition.x_weight * x
    mean = transition.x0_weight * x0_hat + transition.x_weight * x
    kl = normal_kl(true_mean, transition.log_variance_min, mean, log_variance)
    nll = decoder_nll(x0, mean, 0.5 * log_variance, exact)
    return mean_over_dims(jnp.where(transition.to_data > 0, nll, kl)) * BITS


def prior_term(x0: Array, alpha: float, sigma: float) -> Array:
    """L_T = KL(q(x_T|x_0) ‖ N(0, I)) in bits per dimension: [B, ...] -> [B]."""
    return mean_over_dims(normal_kl(alpha * x0, jnp.asarray(2 * math.log(sigma), x0.dtype), 0.0, 0.0)) * BITS
