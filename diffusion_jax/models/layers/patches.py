"""Images as sequences of patches, and back."""

import jax
from einops import rearrange

from diffusion_jax.errors import UserError


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Args:
      height: H of the image.
      width: W of the image.
      patch_size: side p of a patch.

    Returns:
      (H / p, W / p).

    Raises:
      UserError: p does not divide both.
    """
    if height % patch_size or width % patch_size:
        raise UserError(f"model.patch_size={patch_size} does not divide the input of {height}×{width}")
    return height // patch_size, width // patch_size


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
    """Cuts an image [B, H, W, C] into patches [B, N, p²·C], row-major, each in (row, column, channel) order."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)  # [B, N, p²·C]


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """Lays patches [B, N, p²·C] out as the image [B, H, W, C]; the inverse of `patchify`.

    Args:
      patches: [B, h·w, p²·C], row-major, each in (row, column, channel) order.
      grid: (h, w), rows and columns of patches.
      patch_size: side p of a patch.

    Returns:
      [B, h·p, w·p, C].
    """
    h, w = grid
    p = patch_size
    return rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", h=h, w=w, p=p, q=p)  # [B, H, W, C]
