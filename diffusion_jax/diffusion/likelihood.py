"""How probable data are under a model: the variational bound, and the probability-flow ODE."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import keys
from diffusion_jax.diffusion.denoiser import Denoise
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.ode import dopri5
from diffusion_jax.diffusion.paths import DiscretePath, Path
from diffusion_jax.diffusion.point import Array
from diffusion_jax.diffusion.samplers.adaptive import path_velocity
from diffusion_jax.diffusion.variational import BITS, mean_over_dims, prior_term, vlb_term


class BoundTerms(NamedTuple):
    """The variational bound of each sample, in bits per dimension.

    Attributes:
      total: [B] Σ_n L_n + L_T.
      prior: [B] L_T.
      vb: [B, T] L_n, by n.
      x0_mse: [B, T] squared error of x̂_0.
      epsilon_mse: [B, T] squared error of ε̂.
    """

    total: Array
    prior: Array
    vb: Array
    x0_mse: Array
    epsilon_mse: Array


def variational_bound(path: DiscretePath, denoise: Denoise, x0: Array, key: jax.Array, index: Array) -> BoundTerms:
    """The bound on −log₂ p(x_0)/dims, with one noise draw per timestep (Ho et al. 2020, eq. 5).

    Args:
      path: the chain.
      denoise: the network, with a variance; clipping of x̂_0 as in the reference is a transform of it.
      x0: [B, ..., C] data on the 256-level grid of [−1, 1].
      key: scalar key.
      index: [B] global sample indices.

    Returns:
      The bound and its terms; row b depends on (x0[b], key, index[b]) alone.
    """
    return bound_terms(
        path, denoise, x0, lambda n: keys.normal(jax.random.fold_in(key, n), index, x0.shape[1:], x0.dtype)
    )


def bound_terms(path: DiscretePath, denoise: Denoise, x0: Array, noise: Callable[[Array], Array]) -> BoundTerms:
    """`variational_bound` with the noise [B, ..., C] of timestep n given by `noise(n)`."""
    length = path.chain_length

    def term(n: Array) -> tuple[Array, Array, Array]:
        time = (n + 1).astype(x0.dtype) / length
        transition, point = path.transition(time), path.point(time)
        epsilon = noise(n)
        x = noised(x0, epsilon, point)
        found = denoise(x, point._replace(transition=transition))
        assert found.log_variance is not None
        vb = vlb_term(x0, found.x0, x, found.log_variance, transition)
        return vb, mean_over_dims((found.x0 - x0) ** 2), mean_over_dims((found.epsilon - epsilon) ** 2)

    vb, x0_mse, epsilon_mse = (terms.T for terms in jax.lax.map(term, jnp.arange(length)))  # B, T
    alpha_bar = float(path.alpha_bar[-1])
    prior = prior_term(x0, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))
    return BoundTerms(jnp.sum(vb, axis=1) + prior, prior, vb, x0_mse, epsilon_mse)


def log_likelihood(
    path: Path,
    denoise: Denoise,
    x0: Array,
    key: jax.Array,
    index: Array,
    time_min: float | None = None,
    time_max: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Array:
    """ln p(x_0) by the probability-flow ODE (Song et al. 2021, eq. 39), with Hutchinson's estimate of the divergence.

    The Rademacher probe is drawn once per sample and held during the solve: a fresh one in every call would make the
    integrand rough and defeat the control of the error. The density is that of data with the noise of time_min.

    Args:
      path: the process.
      denoise: the network.
      x0: [B, ..., C] data (dequantised, if they come from integers).
      key: scalar key of the probes.
      index: [B] global sample indices.
      time_min: where the ODE starts; None means path.time_min.
      time_max: where it ends; None means path.time_max.
      rtol: relative tolerance.
      atol: absolute tolerance.
      max_steps: bound on step attempts.

    Returns:
      [B] nats; row b depends on (x0[b], key, index[b]) alone. It is NaN where the solve did not reach time_max.
    """
    start = path.time_min if time_min is None else time_min
    end = path.time_max if time_max is None else time_max
    sample_keys = keys.sample_keys(key, index)
    probe = jax.vmap(lambda k: jax.random.rademacher(k, x0.shape[1:], x0.dtype))(sample_keys)  # B, ..., C

    def total(x: Array) -> Array:
        return jnp.sum(x.reshape(x.shape[0], -1), axis=1)

    def velocity(state: tuple[Array, Array], time: Array) -> tuple[Array, Array]:
        # Samples do not interact, so one product with the probe gives every sample's own divergence.
        rate, along = jax.jvp(lambda x: path_velocity(path, denoise, x, time), (state[0],), (probe,))
        return rate, total(along * probe)

    found = dopri5(velocity, (x0, jnp.zeros(x0.shape[0], x0.dtype)), start, end, rtol, atol, max_steps)
    end_x, change = found.y
    std = path.prior_std(end)
    dims = math.prod(x0.shape[1:])
    prior = -0.5 * total((end_x / std) ** 2) - dims * (0.5 * math.log(2 * math.pi) + math.log(std))
    return jnp.where(found.finished, prior + change, jnp.nan)


def bits_per_dim(log_likelihood: Array, dims: int, levels: int = 256) -> Array:
    """Nats of data scaled to [−1, 1] as bits per dimension of the original integer data.

    Args:
      log_likelihood: [B] ln p of dequantised data on [−1, 1].
      dims: dimensions per sample.
      levels: integer levels that [−1, 1] spans.
    """
    return -log_likelihood * BITS / dims + math.log2(levels / 2)
