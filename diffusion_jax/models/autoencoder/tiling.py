"""Running a convolutional network on overlapping tiles, so that memory does not grow with the image."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How latents are cut into tiles (the released code of arXiv 2112.10752 takes 128 and 64).

    Attributes:
      size: height and width of a tile, latent cells.
      stride: distance between tiles, latent cells; the rest overlaps and is blended.

    Raises:
      UserError: tiles that leave gaps.
    """

    size: int = 128
    stride: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise UserError(f"autoencoder.tile={self.size}, tile_stride={self.stride}: need 1 ≤ tile_stride ≤ tile")


def map_tiles(
    function: Callable[[jax.Array], Tree], x: jax.Array, tiling: Tiling, *, cell_in: int = 1, cell_out: int = 1
) -> Tree:
    """Applies a function tile by tile and blends what it gives where tiles overlap.

    A result is weighted by its relative distance to the border of its tile, clipped to [0.01, 0.5]. What is no larger
    than one tile goes through `function` whole, so its result is the untiled one.

    Args:
      function: [B, p·cell_in, q·cell_in, C] to a tree of [B, p·cell_out, q·cell_out, C'] for any p, q.
      x: [B, h·cell_in, w·cell_in, C].
      tiling: the tiles, in latent cells.
      cell_in: pixels of a latent cell in `x`; f to encode, 1 to decode.
      cell_out: pixels of a latent cell in the result; 1 to encode, f to decode.

    Returns:
      The tree with leaves [B, h·cell_out, w·cell_out, C'].
    """
    height, width = x.shape[1] // cell_in, x.shape[2] // cell_in
    tile = (min(tiling.size, height), min(tiling.size, width))
    if tile == (height, width):
        return function(x)
    corners = np.array([(i, j) for i in _starts(height, tiling) for j in _starts(width, tiling)], np.int32)
    border = _weight(tile[0] * cell_out, tile[1] * cell_out)  # [tile, tile, 1]
    shape = (x.shape[0], tile[0] * cell_in, tile[1] * cell_in, x.shape[3])
    described = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, x.dtype))

    def place(total: jax.Array, part: jax.Array, corner: jax.Array) -> jax.Array:
        start = (0, corner[0] * cell_out, corner[1] * cell_out, 0)
        before = jax.lax.dynamic_slice(total, start, part.shape)
        return jax.lax.dynamic_update_slice(total, before + part, start)

    def body(totals: Tree, corner: jax.Array) -> tuple[Tree, None]:
        piece = jax.lax.dynamic_slice(x, (0, corner[0] * cell_in, corner[1] * cell_in, 0), shape)
        results = function(piece)
        return jax.tree.map(lambda total, part: place(total, part * jnp.asarray(border), corner), totals, results), None

    empty = jax.tree.map(
        lambda leaf: jnp.zeros((leaf.shape[0], height * cell_out, width * cell_out, leaf.shape[3]), leaf.dtype),
        described,
    )
    totals, _ = jax.lax.scan(body, empty, jnp.asarray(corners))
    weights = np.zeros((1, height * cell_out, width * cell_out, 1), np.float32)
    for i, j in corners * cell_out:
        weights[0, i : i + tile[0] * cell_out, j : j + tile[1] * cell_out] += border
    return jax.tree.map(lambda total: total / jnp.asarray(weights), totals)


def _starts(length: int, tiling: Tiling) -> list[int]:
    """Where tiles begin along an axis; the last one ends at its end."""
    last = max(length - tiling.size, 0)
    return [*range(0, last, tiling.stride), last]


def _weight(height: int, width: int) -> np.ndarray:
    """[height, width, 1] float32, relative distances to the nearest border in [0.01, 0.5]."""

    def distance(length: int) -> np.ndarray:
        place = np.arange(length) / max(length - 1, 1)
        return np.minimum(place, 1 - place)

    nearest = np.minimum(distance(height)[:, None], distance(width)[None])
    return np.clip(nearest, 0.01, 0.5).astype(np.float32)[..., None]
