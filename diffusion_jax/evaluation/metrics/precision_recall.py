"""Improved precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.metrics.feature_rows import feature_pair

# Distances held at once, 8 bytes each.
BLOCK_ENTRIES = 2**25


class PrecisionRecall(NamedTuple):
    """Shares in 0 … 1, but for density, which may exceed 1.

    Attributes:
      precision: of the fake images, those inside the ball of at least one real image.
      recall: of the real images, those inside the ball of at least one fake image.
      density: how many balls of real images hold a fake one on average, divided by k.
      coverage: of the balls of real images, those that hold a fake image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: ArrayLike, fake: ArrayLike, k: int = 3, *, strict: bool = False, block_entries: int = BLOCK_ENTRIES
) -> PrecisionRecall:
    """Where two feature sets lie relative to each other; around each image a ball reaches to its k-th neighbour.

    Distances are Euclidean, in float64, and computed in blocks of rows: memory beside the features stays bounded. The
    sets may be of different sizes.

    Args:
      real: [N, D] features, N > k.
      fake: [M, D] features, M > k.
      k: neighbours, the image itself not counted. 3 in the paper and in ADM, 5 in dgm-eval.
      strict: whether a point on the edge of a ball is outside, as in dgm-eval; inside in the paper and in ADM.
      block_entries: distances held in memory at once.

    Raises:
      UserError: too few images, widths that differ, or values that are not finite.
    """
    if k < 1:
        raise UserError(f"precision and recall: k={k} neighbours; at least 1 is needed")
    x, y = feature_pair(real, fake, least=k + 1)
    # Distances do not notice, but the cancellation in |u|² − 2uᵀv + |v|² shrinks.
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    real_radii, fake_radii = (_radii(rows, k, block_entries) for rows in (x, y))
    inside = np.less if strict else np.less_equal
    precise, density = 0, 0
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows, squared in _distances(y, x, block_entries):
        in_real = inside(squared, real_radii)  # [rows, N]
        precise += int(in_real.any(axis=1).sum())
        density += int(in_real.sum())
        covered |= in_real.any(axis=0)
        recalled |= inside(squared, fake_radii[rows, None]).any(axis=0)
    return PrecisionRecall(precise / len(y), float(recalled.mean()), density / (k * len(y)), float(covered.mean()))


def squared_radii(features: ArrayLike, k: int = 3) -> np.ndarray:
    """Squared distance of each of the [N, D] features to its k-th nearest neighbour, [N] float64."""
    rows, _ = feature_pair(features, features, least=k + 1)
    return _radii(rows - rows.mean(axis=0), k, BLOCK_ENTRIES)


def _radii(rows: np.ndarray, k: int, block_entries: int) -> np.ndarray:
    radii = np.empty(len(rows))
    for block, squared in _distances(rows, rows, block_entries):
        own = np.arange(block.start, block.stop)
        squared[own - block.start, own] = 0
        radii[block] = np.partition(squared, k, axis=1)[:, k]  # the image itself is the smallest
    return radii


def _distances(a: np.ndarray, b: np.ndarray, block_entries: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of `a`, and their squared distances to all of `b`."""
    a_norms, b_norms = (a * a).sum(1), (b * b).sum(1)
    step = max(1, block_entries // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        squared = a[rows] @ b.T
        squared *= -2
        squared += a_norms[rows, None]
        squared += b_norms
        yield rows, np.maximum(squared, 0, out=squared)
