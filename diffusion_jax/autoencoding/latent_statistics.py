"""Means and deviations of latents, measured batch by batch: what scales them to unit variance for diffusion."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """First and second moments of latents, per channel.

    Attributes:
      count: latent cells measured (images × h × w).
      mean: [c] float64.
      variance: [c] float64, about the mean, of all cells (not the unbiased estimate).
    """

    count: int
    mean: np.ndarray
    variance: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """[c] float64, the deviation of each channel."""
        return np.sqrt(self.variance)

    @property
    def scale(self) -> float:
        """1 over the deviation of all elements about their one mean: LDM's `scale_by_std` (arXiv 2112.10752, §D.1).

        LDM takes the unbiased estimate over the first training batch, which this is for statistics of that batch.
        """
        elements = self.count * len(self.mean)
        biased = np.mean(self.variance + (self.mean - self.mean.mean()) ** 2)
        return float(1 / np.sqrt(biased * elements / (elements - 1)))

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """The statistics of both sets of latents together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / count
        difference = other.mean - self.mean
        within = (1 - share) * self.variance + share * other.variance
        return LatentStatistics(count, self.mean + share * difference, within + share * (1 - share) * difference**2)

    def to_json(self) -> dict[str, object]:
        """What `from_json` reads, of plain numbers; with `scale`, for people."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "variance": self.variance.tolist(),
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, values: dict) -> "LatentStatistics":
        """The inverse of `to_json`."""
        return cls(values["count"], np.array(values["mean"]), np.array(values["variance"]))


@jax.jit
def _moments(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = latents.mean((0, 1, 2))  # [c]
    return mean, jnp.square(latents - mean).mean((0, 1, 2))


def measure(batches: Iterable[jax.Array | np.ndarray]) -> LatentStatistics:
    """The statistics of latents that come in batches, however they are divided.

    Args:
      batches: arrays [B, h, w, c], of any B.

    Returns:
      Their statistics.

    Raises:
      UserError: there are none, or they are not finite, or all equal.
    """
    total: LatentStatistics | None = None
    for latents in batches:
        mean, variance = (np.asarray(moment, np.float64) for moment in _moments(latents))
        part = LatentStatistics(int(np.prod(latents.shape[:-1])), mean, variance)
        total = part if total is None else total.merge(part)
    if total is None:
        raise UserError("latent statistics need at least one batch of latents")
    if not np.all(np.isfinite(total.variance)) or total.variance.sum() == 0:
        raise UserError("the latents have no finite, positive deviation to scale by: is the autoencoder trained?")
    return total
