"""The Gaussian posterior q(x_s | x_t, x_0) between two points of a path (docs/diffusion.md, eq. 4)."""

import numpy as np

from diffusion_jax.diffusion.point import Point, Transition


def transitions(noisy: Point, clean: Point) -> Transition:
    """The reverse steps noisy[k] → clean[k] of a descending chain, in float64 on the host.

    Holds for any Gaussian path; on a variance-preserving one it is DDPM eq. 6 and 7 with β = 1 − ᾱ_t/ᾱ_s.

    Args:
      noisy: [N] points, noisiest first.
      clean: [N] points, clean[k] less noisy than noisy[k]; only the last may be clean data (sigma 0).

    Returns:
      [N] transitions.
    """
    ratio = noisy.alpha / clean.alpha
    forward_variance = noisy.sigma**2 - (ratio * clean.sigma) ** 2
    x0_weight = clean.alpha * forward_variance / noisy.sigma**2
    x_weight = ratio * (clean.sigma / noisy.sigma) ** 2
    variance = forward_variance * (clean.sigma / noisy.sigma) ** 2
    to_data = clean.sigma == 0
    log_variance_max = np.log(forward_variance)
    log_variance_min = np.log(np.where(to_data, 1.0, variance))
    if to_data[-1]:
        log_variance_min[-1] = log_variance_min[-2] if len(log_variance_min) > 1 else log_variance_max[-1]
    return Transition(x0_weight, x_weight, log_variance_min, log_variance_max, to_data.astype(np.float64))
