"""Pictures of samples: uint8 conversion and labelled grids."""

import io
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.files import write_atomically

Uint8Rule = Literal["trunc(127.5x+128)", "trunc(127.5(x+1))"]
ROUNDED: Uint8Rule = "trunc(127.5x+128)"

CELL = 64  # the smallest side in pixels at which a person can judge an image
MARGIN = 2
CAPTION = 14


def to_uint8(images: jax.Array, rule: Uint8Rule = ROUNDED) -> jax.Array:
    """Quantises images in [−1, 1].

    Args:
      images: any shape, float.
      rule: "trunc(127.5x+128)" rounds to nearest, as the sampling scripts of DiT, SiT and U-ViT do;
        "trunc(127.5(x+1))", as ADM's and LDM's do, is half a level darker. Both clip to 0 … 255.

    Returns:
      uint8 of the same shape.
    """
    offset = 128.0 if rule == ROUNDED else 127.5
    return jnp.clip(127.5 * images + offset, 0, 255).astype(jnp.uint8)


def from_uint8(images: jax.Array) -> jax.Array:
    """Images uint8, of any shape, as float32 in [−1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Repeats the one channel of grey images [N, H, W, 1] three times; leaves [N, H, W, 3] as they are."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def grid(images: np.ndarray, captions: Sequence[str] | None = None, columns: int | None = None) -> Image.Image:
    """Lays images out in rows, with a caption above each; small ones are enlarged smoothly.

    Args:
      images: [N, H, W, C] uint8, C 1 or 3.
      captions: N short texts, or None.
      columns: images per row; None makes the grid about square.

    Returns:
      An RGB image.
    """
    count, height, width, _ = images.shape
    columns = min(count, columns or int(np.ceil(np.sqrt(count))))
    scale = max(1, -(-CELL // min(height, width)))
    top = CAPTION if captions else 0
    cell_height, cell_width = height * scale + MARGIN + top, width * scale + MARGIN
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=CAPTION - 4)
    for i, image in enumerate(to_rgb(images)):
        left, upper = MARGIN + i % columns * cell_width, MARGIN + i // columns * cell_height
        if captions:
            draw.text((left, upper), captions[i], fill="black", font=font)
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left, upper + top))
    return sheet


def save(sheet: Image.Image, path: epath.PathLike) -> None:
    """Writes a PNG so that a reader never sees half of it."""
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    write_atomically(path, png.getvalue())
