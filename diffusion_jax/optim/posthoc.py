"""Averages of any width after the run, from stored averages of two widths (Karras et al. 2024, algorithm 3)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.optim.ema_profiles import gamma_of_width
from diffusion_jax.parallel.partition import PyTree

# The largest share of a profile that a combination of others may miss and still go by its width.
LARGEST_MISFIT = 0.2


class Snapshot(NamedTuple):
    """One stored average.

    Attributes:
      time: when it was stored, in updates or images, the same unit for all.
      sigma_rel: the width of its profile.
    """

    time: float
    sigma_rel: float


def profile_product(a: Snapshot, b: Snapshot) -> float:
    """⟨p_a, p_b⟩, the integral of the product of two power-function profiles (algorithm 3)."""
    gamma_a, gamma_b = gamma_of_width(a.sigma_rel), gamma_of_width(b.sigma_rel)
    exponent = gamma_b if a.time < b.time else -gamma_a
    scale = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * max(a.time, b.time))
    return scale * (a.time / b.time) ** exponent


def posthoc_weights(stored: Sequence[Snapshot], target: Snapshot) -> np.ndarray:
    """The combination of stored averages whose profile is nearest to that of another width or time (algorithm 3).

    Args:
      stored: the averages at hand; two widths, stored every so often, are enough for any width between and beyond.
      target: the profile wanted.

    Returns:
      [len(stored)] float64 weights of sum 1.

    Raises:
      UserError: nothing stored, or a target later than all that is stored.
    """
    if not stored:
        raise UserError("ema: no stored averages to combine; train with snapshots first")
    last = max(snapshot.time for snapshot in stored)
    if target.time > last:
        raise UserError(f"ema: cannot reconstruct time {target.time:g}, later than the last stored average, {last:g}")
    gram = np.array([[profile_product(a, b) for b in stored] for a in stored])
    right = np.array([profile_product(a, target) for a in stored])
    # Profiles of neighbouring snapshots are nearly the same, so the system is solved in the least-squares sense.
    weights = np.linalg.lstsq(gram, right, rcond=1e-15)[0]
    return weights / weights.sum()


class Fit(NamedTuple):
    """How near a combination of profiles comes to the one wanted.

    Attributes:
      sigma_rel: standard deviation of the combination over the time of the one wanted; NaN where negative weights
        leave it none.
      misfit: the distance between the two densities over the norm of the one wanted, both in L₂; 0 is exact.
    """

    sigma_rel: float
    misfit: float


def posthoc_fit(stored: Sequence[Snapshot], weights: np.ndarray, target: Snapshot) -> Fit:
    """What a combination of stored averages amounts to.

    Args:
      stored: the averages at hand.
      weights: [len(stored)] of sum 1, from `posthoc_weights`.
      target: the profile wanted.

    Returns:
      The width of the combination and its relative distance from the profile wanted.
    """
    gram = np.array([[profile_product(a, b) for b in stored] for a in stored])
    along = np.array([profile_product(a, target) for a in stored])
    norm = profile_product(target, target)
    square = (weights @ gram @ weights - 2 * along @ weights + norm) / norm
    gammas = np.array([gamma_of_width(snapshot.sigma_rel) for snapshot in stored])
    times = np.array([snapshot.time for snapshot in stored]) / target.time
    mean, mean_square = (np.sum(weights * times**k * (gammas + 1) / (gammas + 1 + k)) for k in (1, 2))
    variance = mean_square - mean**2
    width = math.sqrt(variance) if variance > 0 else math.nan
    return Fit(width, math.sqrt(max(square, 0.0)))


def check_fit(fit: Fit, target: Snapshot) -> None:
    """Raises a `UserError` where the misfit is beyond `LARGEST_MISFIT`."""
    if fit.misfit > LARGEST_MISFIT:
        width = "no width" if math.isnan(fit.sigma_rel) else f"width {fit.sigma_rel:.3g}"
        raise UserError(
            f"ema: the snapshots do not give an average of width {target.sigma_rel:g} at step {target.time:g}: the "
            f"nearest has {width} and misses {100 * fit.misfit:.0f} % of the profile, of at most "
            f"{100 * LARGEST_MISFIT:.0f} %; ask for a width nearer to those stored, or train with more snapshots "
            "(a smaller train.snapshot_every) and two train.ema_widths"
        )


def posthoc_average(weights: np.ndarray, load: Callable[[int], PyTree]) -> PyTree:
    """Σ weights[i] · load(i), one snapshot in memory at a time.

    Args:
      weights: [N] from `posthoc_weights`.
      load: gives the pytree of snapshot i.

    Returns:
      The average: accumulated in float64 on the host, in the dtypes of the snapshots.
    """
    total: PyTree = None
    like: PyTree = None
    for i, weight in enumerate(weights):
        like = load(i)
        part = jax.tree.map(lambda leaf, w=weight: w * np.asarray(leaf, np.float64), like)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf, old: leaf.astype(np.asarray(old).dtype), total, like)
