"""How close a reconstruction is to its image: PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio, 10 log₁₀(range² / MSE).

    Args:
      a: [B, H, W, C] float in [−1, 1]; values beyond count as the nearest in range, as they do once shown.
      b: the images to compare with.

    Returns:
      [B] float32, dB; at most 100, that of equal images.
    """
    a, b = jnp.clip(a, -1, 1), jnp.clip(b, -1, 1)
    error = jnp.square(a - b).mean((1, 2, 3))  # [B]
    return -10 * jnp.log10(jnp.maximum(error / 4, 1e-10))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity (Wang et al. 2004) with their Gaussian window: 11 pixels, σ = 1.5, K = (0.01, 0.03).

    Channels are compared one by one, and windows lie wholly inside the image.

    Args:
      a: [B, H, W, C] float in [−1, 1], H and W at least 11; values beyond count as the nearest in range.
      b: the images to compare with.

    Returns:
      [B] float32 ≤ 1, the mean over windows and channels.
    """
    a, b = (jnp.clip(images, -1, 1) / 2 + 0.5 for images in (a, b))
    mean_a, mean_b = _blur(a), _blur(b)  # [B, H-10, W-10, C]
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    likeness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    likeness *= (2 * covariance + c2) / (variance_a + variance_b + c2)
    return likeness.mean((1, 2, 3))


def _blur(images: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, H-10, W-10, C]: the Gaussian window, one axis after the other."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        valid = images.shape[axis] - WINDOW + 1
        parts = [jax.lax.slice_in_dim(images, i, i + valid, axis=axis) for i in range(WINDOW)]
        images = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return images
