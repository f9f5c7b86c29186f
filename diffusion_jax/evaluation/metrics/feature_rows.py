"""Feature vectors as the metrics take them."""

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError


def feature_rows(features: ArrayLike, name: str, least: int = 1) -> np.ndarray:
    """One feature vector per row in float64.

    Args:
      features: [N, D], any floating type.
      name: what errors call them.
      least: the smallest N that makes sense.

    Raises:
      UserError: another number of axes, too few rows, or a value that is not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < least:
        raise UserError(f"{name} have shape {list(rows.shape)}; [N, D] is needed, with N ≥ {least}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise UserError(f"{name}: those of image {finite.argmin()} are not finite; remove that image")
    return rows


def feature_pair(real: ArrayLike, fake: ArrayLike, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as `feature_rows`; they must be of one width."""
    real, fake = feature_rows(real, "real features", least), feature_rows(fake, "fake features", least)
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real images have {real.shape[1]} features and fake ones {fake.shape[1]}; use one extractor")
    return real, fake
