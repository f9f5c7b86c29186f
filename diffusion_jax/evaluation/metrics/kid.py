"""Kernel distances between feature sets: KID (arXiv 1801.01401) and CMMD (arXiv 2401.09603)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.metrics.feature_rows import feature_pair

BLOCK_ROWS = 2048
CMMD_BANDWIDTH = 10.0
CMMD_SCALE = 1000.0


class KernelDistance(NamedTuple):
    """Mean and population standard deviation over the subsets (divisor n)."""

    mean: float
    std: float


def kernel_distance(
    real: ArrayLike, fake: ArrayLike, subsets: int | None = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy under the kernel (aᵀb/D + 1)³, which under Inception is KID.

    Subsets are drawn as torch-fidelity draws them: one `RandomState(seed)`, in every subset the fake ones first.

    Args:
      real: [N, D] features.
      fake: [M, D] features.
      subsets: how many subsets to average over; None takes the whole sets instead, in one estimate.
      subset_size: images of each side in a subset, drawn without replacement.
      seed: of the subsets.

    Returns:
      Mean and standard deviation, not multiplied by 10³; an unbiased estimate is negative where the sets are alike.

    Raises:
      UserError: fewer images than a subset has, widths that differ, or values that are not finite.
    """
    real_rows, fake_rows = feature_pair(real, fake, least=2)
    if subsets is None:
        return KernelDistance(_unbiased(real_rows, fake_rows), 0.0)
    if subset_size < 2 or min(len(real_rows), len(fake_rows)) < subset_size:
        raise UserError(
            f"kernel distance: subsets of {subset_size} need as many images (at least 2); there are {len(real_rows)} "
            f"real and {len(fake_rows)} fake ones"
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        chosen = fake_rows[random.choice(len(fake_rows), subset_size, replace=False)]
        values.append(_unbiased(real_rows[random.choice(len(real_rows), subset_size, replace=False)], chosen))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def clip_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """The biased squared discrepancy under exp(−|a − b|²/200), times 1000: CMMD where the features are CLIP's.

    Args:
      real: [N, D] features; each is brought to length 1.
      fake: [M, D] features.

    Raises:
      UserError: widths that differ, features that are all zero, or values that are not finite.
    """
    x, y = (_directions(rows, name) for rows, name in zip(feature_pair(real, fake), ("real", "fake"), strict=True))

    # All kernels are nearly 1; without the ones, which cancel in the sum, no digits are lost.
    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        squared = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)
        return np.expm1(-squared / (2 * CMMD_BANDWIDTH**2)).sum()

    within = _blocked(kernel_sum, x, x) / len(x) ** 2 + _blocked(kernel_sum, y, y) / len(y) ** 2
    return CMMD_SCALE * (within - 2 * _blocked(kernel_sum, x, y) / (len(x) * len(y)))


def _directions(rows: np.ndarray, name: str) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise UserError(f"{name} features: those of image {lengths.argmin()} are all zero; remove that image")
    return rows / lengths


def _cubic_sum(a: np.ndarray, b: np.ndarray) -> float:
    values = (a / a.shape[1]) @ b.T
    values += 1
    return np.vdot(values * values, values)


def _unbiased(real: np.ndarray, fake: np.ndarray) -> float:
    def within(rows: np.ndarray) -> float:
        count = len(rows)
        itself = (((rows * rows).sum(1) / rows.shape[1] + 1) ** 3).sum()
        return (_blocked(_cubic_sum, rows, rows) - itself) / (count * (count - 1))

    return float(within(fake) + within(real) - 2 * _blocked(_cubic_sum, fake, real) / (len(fake) * len(real)))


def _blocked(kernel_sum: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> float:
    """The sum of kernels over all pairs, a block of rows of `a` at a time."""
    return float(sum(kernel_sum(a[start : start + BLOCK_ROWS], b) for start in range(0, len(a), BLOCK_ROWS)))
