"""Mean and covariance of features that arrive in batches, exactly."""

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError


class FeatureStatistics:
    """Accumulates float64 sums of features, from which mean and covariance follow at the end.

    With c a fixed vector, the sums are n, s = Σ(x−c) and S = Σ(x−c)(x−c)ᵀ. They add: any division into batches and
    any order of updates and merges gives the same result up to float64 rounding. The shift c, the mean of the first
    batch, keeps S from losing digits where the mean is large beside the spread.

    Args:
      width: D, number of features.

    Attributes:
      width: D.
      count: n, how many feature vectors have been added.

    Where updates name the images, each must come once, over all merges, and none may be missing at the end.
    """

    def __init__(self, width: int):
        self.width = width
        self.count = 0
        self._shift = np.zeros(width)
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))
        self._indices: set[int] = set()

    def update(self, features: ArrayLike, indices: ArrayLike | None = None) -> None:
        """Adds a batch.

        Args:
          features: [B, D], any floating type.
          indices: [B] integers, the number of each image in the whole set; None keeps no account of them.

        Raises:
          UserError: another shape, a value that is not finite, or an image that is there already; nothing is added
            then.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise UserError(
                f"features of shape {list(rows.shape)}: statistics of width {self.width} need [B, {self.width}]"
            )
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise UserError(f"the features of image {self.count + finite.argmin()} are not finite; remove that image")
        if indices is not None:
            self._indices = _disjoint(self._indices, np.asarray(indices).tolist(), len(rows))
        if not len(rows):
            return
        if self.count == 0:
            self._shift = rows.mean(axis=0)
        centred = rows - self._shift  # [B, D]
        self.count += len(rows)
        self._sum += centred.sum(axis=0)
        self._products += centred.T @ centred

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds everything that `other` has seen; `other` is unchanged.

        Raises:
          UserError: the widths differ, or both have seen the same image.
        """
        if other.width != self.width:
            raise UserError(f"statistics of {self.width} and of {other.width} features do not merge; use one extractor")
        self._indices = _disjoint(self._indices, list(other._indices), len(other._indices))
        if self.count == 0:
            self._shift = other._shift.copy()
        # Moves the other's sums to our shift: with d = c' − c, Σ(x−c) = s' + n'd, and S likewise.
        move = other._shift - self._shift  # [D]
        cross = np.outer(other._sum, move)  # [D, D]
        self.count += other.count
        self._sum += other._sum + other.count * move
        self._products += other._products + cross + cross.T + other.count * np.outer(move, move)

    def finalise(self) -> tuple[np.ndarray, np.ndarray]:
        """The moments of everything added so far; more can be added afterwards.

        Returns:
          Mean [D] and covariance [D, D] with divisor n − 1, float64.

        Raises:
          UserError: fewer than two feature vectors, or images of the set are missing.
        """
        if self._indices:
            absent = set(range(max(self._indices) + 1)) - self._indices
            if absent:
                raise UserError(f"the features of image {min(absent)} are missing, and {len(absent)} in all; add them")
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.count}; add images")
        mean = self._shift + self._sum / self.count
        products = self._products - np.outer(self._sum, self._sum) / self.count
        return mean, (products + products.T) / (2 * (self.count - 1))


def _disjoint(seen: set[int], added: list[int], count: int) -> set[int]:
    """All images seen and added; raises UserError unless those added are `count` and none comes twice."""
    together = seen | set(added)
    if len(added) != count or len(together) != len(seen) + count:
        twice = sorted(index for index in set(added) if index in seen or added.count(index) > 1)
        what = f"image {twice[0]} comes twice" if twice else f"{len(added)} indices came with {count} images"
        raise UserError(f"feature statistics: {what}; give each image of the set once")
    return together
