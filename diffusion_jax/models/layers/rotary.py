"""Rotary position embeddings of a two-dimensional grid (arXiv 2104.09864; as in LightningDiT, arXiv 2501.01423)."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.layers.embeddings import grid_positions


def rotary_2d(height: int, width: int, features: int, base: tuple[int, int] | None = None) -> np.ndarray:
    """The angles by which the tokens of a grid are rotated.

    Args:
      height: token rows.
      width: token columns.
      features: width d of a head, divisible by 4.
      base: see `grid_positions`.

    Returns:
      [height·width, d/2] float32, one angle per pair of features: position · 10000^(−2k/(d/2)), k = 0 … d/4 − 1, first
      of the row, then of the column.
    """
    frequencies = 10000.0 ** (-np.arange(features // 4) / (features // 4))
    rows, columns = grid_positions(height, width, base)
    return np.concatenate([rows[:, None] * frequencies, columns[:, None] * frequencies], axis=1).astype(np.float32)


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Rotates each pair of neighbouring features (even, odd) by its angle.

    Args:
      x: [B, N, heads, d] queries or keys.
      angles: [N, d/2].

    Returns:
      [B, N, heads, d] float32.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)  # [B, N, heads, d/2, 2]
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]  # [N, 1, d/2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)  # [B, N, heads, d]
