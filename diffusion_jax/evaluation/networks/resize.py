"""From uint8 images of any size to the 299 × 299 input of the Inception network, by the rule of each evaluator."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

SIZE = 299

ResizeRule = Literal["tf1_bilinear", "half_pixel_bilinear", "pil_bicubic"]
VisionResizeRule = Literal["pil_bicubic_uint8", "bicubic_antialias"]
ScaleRule = Literal["(x-128)/128", "x/127.5-1"]


def tf1_bilinear(images: jax.Array) -> jax.Array:
    """The bilinear resize of TensorFlow 1: corners not aligned, no half-pixel offset, no antialiasing, no rounding.

    `jax.image.resize` has no such rule: its samples lie half a pixel elsewhere.

    Args:
      images: [B, H, W, C] float32.

    Returns:
      [B, 299, 299, C] float32.
    """

    def coordinates(size: int) -> np.ndarray:
        return np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)

    return _interpolate(images, coordinates)


def half_pixel_bilinear(images: jax.Array) -> jax.Array:
    """PyTorch's `interpolate(mode="bilinear", align_corners=False)`, which pytorch-fid uses; shapes as `tf1_bilinear`.

    No antialiasing: an image larger than 299 pixels is aliased.
    """

    def coordinates(size: int) -> np.ndarray:
        # In float64: in float32, as `jax.image.resize` has them, pixels of a 511 pixel image move by 2e-5 of 255.
        return np.maximum((np.arange(SIZE) + 0.5) * size / SIZE - 0.5, 0)

    return _interpolate(images, coordinates)


def pil_bicubic(images: jax.Array) -> jax.Array:
    """Pillow's antialiased bicubic filter on float channels, clipped to 0 … 255, not rounded: that of clean-fid.

    Shapes as `tf1_bilinear`.
    """
    return jnp.clip(bicubic_antialias(images, SIZE), 0, 255)


def bicubic_antialias(images: jax.Array, size: int) -> jax.Array:
    """PyTorch's `interpolate(mode="bicubic", antialias=True)` on floats, which EDM2 takes for DINOv2; not clipped.

    Args:
      images: [B, H, W, C] float32.
      size: S, pixels.

    Returns:
      [B, S, S, C] float32.
    """
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "bicubic", antialias=True, precision=jax.lax.Precision.HIGHEST)


def pil_bicubic_uint8(images: np.ndarray, size: int, crop: bool = False) -> np.ndarray:
    """Pillow's bicubic filter on 8-bit images, rounded after each of its two passes: on the host, by Pillow itself.

    Args:
      images: [B, H, W, 3] uint8.
      size: S, pixels.
      crop: cut the central square out first.

    Returns:
      [B, S, S, 3] uint8.
    """
    if crop:
        side = min(images.shape[1:3])
        top, left = ((length - side) // 2 for length in images.shape[1:3])
        images = images[:, top : top + side, left : left + side]
    bicubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), bicubic)) for image in images])


RESIZES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tf1_bilinear": tf1_bilinear,
    "half_pixel_bilinear": half_pixel_bilinear,
    "pil_bicubic": pil_bicubic,
}
"""Resize rules by the names that results state."""


def network_input(images: jax.Array, resize: ResizeRule, scale: ScaleRule) -> jax.Array:
    """What the Inception network sees of images.

    Args:
      images: [B, H, W, 3] uint8.
      resize: how they come to 299 × 299 pixels.
      scale: how 0 … 255 comes to about −1 … 1.

    Returns:
      [B, 299, 299, 3] float32.
    """
    pixels = RESIZES[resize](images.astype(jnp.float32))
    return (pixels - 128) / 128 if scale == "(x-128)/128" else pixels / 127.5 - 1


def _interpolate(x: jax.Array, coordinates: Callable[[int], np.ndarray]) -> jax.Array:
    """Bilinear samples [B, 299, 299, C] of images [B, H, W, C] at the places ≥ 0 that `coordinates` gives of a length.

    The coordinates are NumPy's, so that the compiler cannot round them otherwise.
    """
    for axis in (2, 1):  # horizontally first, as TensorFlow does
        size = x.shape[axis]
        if size == SIZE:
            continue
        coordinate = coordinates(size)  # [299]
        low = coordinate.astype(np.int32)
        high = np.minimum(low + 1, size - 1)
        fraction = np.expand_dims((coordinate - low).astype(np.float32), [i for i in range(x.ndim) if i != axis])
        start = jnp.take(x, low, axis)
        x = start + (jnp.take(x, high, axis) - start) * fraction
    return x
