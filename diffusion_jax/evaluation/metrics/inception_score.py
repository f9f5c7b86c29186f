"""The Inception Score (arXiv 1606.03498), in each of the ways that published values were split."""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.metrics.feature_rows import feature_rows

SplitConvention = Literal["adm", "torch_fidelity", "openai", "dgm"]

SHUFFLE_SEED = 2020
DEFAULT_SPLITS: dict[SplitConvention, int] = {"adm": 5000, "torch_fidelity": 10, "openai": 10, "dgm": 10}

# How far rows of probabilities may be from a sum of 1, being float32 or rounded for storage.
SUM_TOLERANCE = 1e-3


class InceptionScore(NamedTuple):
    """Mean and population standard deviation over the splits (divisor n); ADM's script reports the mean alone."""

    mean: float
    std: float


def inception_score(
    logits_or_probs: ArrayLike, splits: int | None = None, convention: SplitConvention = "adm"
) -> InceptionScore:
    """exp of the mean Kullback-Leibler divergence between an image's classes and those of its split, over splits.

    Args:
      logits_or_probs: [N, K] of each image, in float64 if the value is to be exact; rows of non-negative numbers that
        all sum to 1 are taken as probabilities, anything else as logits. The published score takes the 1008
        logits without bias.
      splits: number of splits; for "adm" the number of images in each but the last. None is what was published: 10
        splits, or 5000 images.
      convention: "adm": consecutive blocks of 5000, the last may be short. "torch_fidelity": shuffled by the seed 2020,
        then 10 splits with bounds ⌊iN/10⌋. "openai": the same, not shuffled. "dgm": shuffled, 10 splits of ⌊N/10⌋,
        the rest dropped.

    Returns:
      Mean and standard deviation; the mean is between 1 and K.

    Raises:
      UserError: an unknown convention, fewer images than splits, or values that are not finite.
    """
    if convention not in get_args(SplitConvention):
        raise UserError(f"Inception Score: no convention '{convention}'{did_you_mean(convention, DEFAULT_SPLITS)}")
    rows = feature_rows(logits_or_probs, "logits")
    parts = split_indices(len(rows), splits or DEFAULT_SPLITS[convention], convention)
    log_probs = _log_probs(rows)
    scores = [_score(log_probs[part]) for part in parts]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def split_indices(count: int, splits: int, convention: SplitConvention) -> list[np.ndarray]:
    """The images of each split, as indices into 0 … count − 1; arguments as for `inception_score`."""
    order = np.arange(count)
    if convention == "adm":
        return [order[start : start + splits] for start in range(0, count, splits)]
    if count < splits:
        raise UserError(f"Inception Score: {count} images are too few for {splits} splits")
    if convention in ("torch_fidelity", "dgm"):
        order = np.random.RandomState(SHUFFLE_SEED).permutation(count)
    if convention == "dgm":
        return list(order[: count // splits * splits].reshape(splits, -1))
    return [order[i * count // splits : (i + 1) * count // splits] for i in range(splits)]


def _log_probs(rows: np.ndarray) -> np.ndarray:
    if (rows >= 0).all() and np.abs(rows.sum(axis=1) - 1).max() < SUM_TOLERANCE:
        with np.errstate(divide="ignore"):
            return np.log(rows)
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _score(log_probs: np.ndarray) -> float:
    probs = np.exp(log_probs)
    marginal = probs.mean(axis=0)
    # 0 log 0 is 0: a class that no image has, or that this one surely is not, adds nothing.
    own = np.where(probs > 0, probs * np.where(probs > 0, log_probs, 0), 0).sum(axis=1).mean()
    shared = (marginal[marginal > 0] * np.log(marginal[marginal > 0])).sum()
    return float(np.exp(own - shared))
