"""The Fréchet distance between two Gaussians, which under the 2015 Inception network is FID (arXiv 1706.08500)."""

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError

# Covariances stored in float32 come back asymmetric, and with negative eigenvalues, by about 1e-7 of their size.
STORED_PRECISION = 1e-5


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """The squared 2-Wasserstein distance ‖μ₁−μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ of two normal distributions.

    Computed on the host in float64 from symmetric eigenvalues. Covariances may be singular, as they are when estimated
    from no more images than there are features.

    Args:
      mu1: [D] mean of the first.
      sigma1: [D, D] covariance of the first.
      mu2: [D] mean of the second.
      sigma2: [D, D] covariance of the second.

    Returns:
      The distance, ≥ 0, in squared units of the features.

    Raises:
      UserError: the widths differ, a value is not finite, or a matrix is not symmetric and positive semi-definite.
    """
    mu1, sigma1 = _moments(mu1, sigma1, "first")
    mu2, sigma2 = _moments(mu2, sigma2, "second")
    if len(mu1) != len(mu2):
        raise UserError(
            f"Fréchet distance: the first distribution has {len(mu1)} features and the second {len(mu2)}; take both "
            "from the same extractor"
        )
    if _is_full_rank(sigma1) and _is_full_rank(sigma2):
        # Any R₁ with Σ₁ = R₁R₁ᵀ will do, and the triangular one is found in a sixth of the time of eigenvectors.
        root = np.linalg.cholesky(sigma1)
        # R₁ᵀΣ₂R₁, which has the eigenvalues of Σ₁Σ₂; its lower triangle, at a quarter of the cost of two products.
        product, failure = scipy.linalg.lapack.dsygst(sigma2, root, itype=2, lower=1)
        assert failure == 0
        root_trace = np.sqrt(np.maximum(np.linalg.eigvalsh(product, UPLO="L"), 0)).sum()
    else:
        # A zero eigenvalue of the product comes out as some ε of rounding, and √ε is not small. The singular values
        # of R₁ᵀR₂ are those square roots themselves.
        root1, root2 = _root(sigma1, "first"), _root(sigma2, "second")
        root_trace = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    return max(float(distance), 0.0)  # equal distributions give a rounding error of either sign


def _moments(mu: ArrayLike, sigma: ArrayLike, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and exactly symmetric covariance in float64, checked for shape, finiteness and symmetry."""
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"Fréchet distance: the {which} mean {list(mu.shape)} and covariance {list(sigma.shape)} do not fit; "
            "shapes [D] and [D, D] are needed"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"Fréchet distance: the {which} distribution has values that are not finite; compute it again")
    asymmetry = np.abs(sigma - sigma.T).max(initial=0)
    if asymmetry > STORED_PRECISION * np.abs(sigma).max(initial=0):
        raise UserError(
            f"Fréchet distance: the {which} covariance is not symmetric (by {asymmetry:.3g}); it is damaged"
        )
    return mu, (sigma + sigma.T) / 2


def _root(sigma: np.ndarray, which: str) -> np.ndarray:
    """R [D, rank] with Σ = R Rᵀ, by eigenvalues; those that cannot be told from zero are left out."""
    values, vectors = np.linalg.eigh(sigma)
    if values[0] < -STORED_PRECISION * values[-1]:
        raise UserError(
            f"Fréchet distance: the {which} covariance has an eigenvalue {values[0]:.3g} < 0; it is no covariance"
        )
    kept = values > _rounding(sigma)
    return vectors[:, kept] * np.sqrt(values[kept])


def _rounding(sigma: np.ndarray) -> float:
    """The size below which an eigenvalue cannot be told from zero."""
    return len(sigma) * np.finfo(np.float64).eps * float(np.linalg.norm(sigma))


def _is_full_rank(sigma: np.ndarray) -> bool:
    """Whether all eigenvalues are clearly positive, by a Cholesky factorisation: far cheaper than the eigenvalues."""
    try:
        np.linalg.cholesky(sigma - _rounding(sigma) * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        return False
    return True
