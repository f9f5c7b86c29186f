"""From an encoded photograph to a square uint8 array."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from diffusion_jax.data.image_files import DECODING_ERRORS, Parts, open_image, orientation_of, parts_of, size_of
from diffusion_jax.data.sources import BadImage
from diffusion_jax.errors import UserError

Crop = Literal["adm", "celeba"]

# Width and height of the aligned photographs of CelebA (arXiv 1411.7766).
ALIGNED_FACE = (178, 218)

# What makes an image upright, by the orientation that its EXIF block states.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Those of them that exchange width and height.
LYING = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)

# Beyond this ratio of the sides an enlarged image would be far larger than its crop, which alone is then computed.
THIN = 16


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes JPEG, PNG and WebP to the size and channels a model takes.

    Attributes:
      image_size: height and width of the result, pixels.
      channels: 3 (RGB) or 1 (grey).
      exif_orientation: turn the image as its EXIF tag says before cropping; False takes pixels as stored. Nothing else
        beside the pixels matters, so an EXIF block that cannot be read counts as none.
      crop: "adm" for `centre_crop`, "celeba" for `face_crop`.
    """

    image_size: int
    channels: int = 3
    exif_orientation: bool = True
    crop: Crop = "adm"

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Decodes one image.

        Args:
          data: contents of an image file; of an animation, the first frame is taken.
          name: what to call it in an error message, for example its path.

        Returns:
          uint8 [image_size, image_size, channels].

        Raises:
          BadImage: `data` is truncated, damaged or no such image.
          UserError: the crop is "celeba" and the image is not of that data set's size.
        """
        parts = parts_of(data)
        with _naming(name):
            image = to_channels(open_image(parts.pixels), self.channels)
        method = self._method(parts)
        if method is not None:
            image = image.transpose(method)
        if self.crop == "celeba":
            _check_aligned(image.size, name)
            return face_crop(image, self.image_size).reshape(self.image_shape)
        return centre_crop(image, self.image_size).reshape(self.image_shape)

    def check(self, data: bytes, name: str) -> None:
        """Raises what decoding would, as far as the head of the file tells; arguments as of a call."""
        parts = parts_of(data)
        with _naming(name):
            size = size_of(parts.pixels)
        if self.crop == "celeba":
            _check_aligned(size[::-1] if self._method(parts) in LYING else size, name)

    def _method(self, parts: Parts) -> Image.Transpose | None:
        """What makes the image upright, if anything must and may."""
        return UPRIGHT.get(orientation_of(parts)) if self.exif_orientation else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def __str__(self) -> str:
        orientation = "exif" if self.exif_orientation else "stored"
        return f"size={self.image_size} channels={self.channels} crop={self.crop} orientation={orientation}"


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Reports what a decoder raises as a `BadImage` of this name."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise BadImage.of(name, "not a JPEG, PNG or WebP image") from None
    except DECODING_ERRORS as error:
        raise BadImage.of(name, str(error)) from error


def _check_aligned(size: tuple[int, int], name: str) -> None:
    """Raises a UserError unless an image is as wide and high as the aligned photographs of CelebA."""
    if size != ALIGNED_FACE:
        raise UserError(
            f"{name}: is {size[0]}×{size[1]} pixels, and data.crop=celeba is for the aligned photographs of CelebA, "
            f"{ALIGNED_FACE[0]}×{ALIGNED_FACE[1]}: set data.crop=adm"
        )


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts any mode to 8-bit RGB or grey.

    Transparent pixels and those of a transparent colour are laid over white; 16-bit grey is scaled to 8 bits; CMYK and
    YCCK go through Pillow's plain conversion; colour profiles are ignored; grey is ITU-R 601 luma.

    Args:
      image: an image of any Pillow mode.
      channels: 3 for mode RGB, 1 for mode L.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint32)  # H W
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The crop of ADM (Dhariwal and Nichol 2021), which DiT and its successors kept.

    The image is halved by a box filter while its short side is at least twice `size`, resized bicubically to short
    side `size` (enlarged if it was smaller), and cropped at the centre, the odd pixel falling to the right and bottom.

    Args:
      image: 8-bit image of mode L or RGB.
      size: height and width of the result, pixels.

    Returns:
      uint8 [size, size] or [size, size, 3].
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if scale > 1 and width > THIN * height:
        strip = cubic_window(np.asarray(image).swapaxes(0, 1), width, left, size).swapaxes(0, 1)  # H size C
        return np.array(Image.fromarray(strip).resize((size, size), Image.Resampling.BICUBIC))
    if scale > 1 and height > THIN * width:
        narrow = np.asarray(image.resize((size, image.height), Image.Resampling.BICUBIC))  # H size C
        return cubic_window(narrow, height, top, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + size, top + size)))


def cubic_window(rows: np.ndarray, new_height: int, first: int, count: int) -> np.ndarray:
    """Some rows of an image that Pillow would resize bicubically along its height, bit for bit, at the cost of those.

    Args:
      rows: uint8 [H, W] or [H, W, C].
      new_height: of the whole image, ≥ first + count.
      first: the first of the rows wanted, ≥ 0.
      count: their number.

    Returns:
      uint8 [count, W] or [count, W, C].
    """
    # Pillow's own arithmetic: weights in double precision, rounded to 22 bits behind the point, summed in integers.
    length, bits = len(rows), 22
    scale = length / new_height
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    window = np.empty((count, *rows.shape[1:]), np.uint8)
    for i in range(count):
        centre = (first + i + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        x = np.abs((np.arange(start, stop) - centre + 0.5) / stretch)
        near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
        weights /= sum(weights)
        levels = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
        total = np.tensordot(levels, rows[start:stop].astype(np.int32), axes=1) + (1 << (bits - 1))
        window[i] = np.clip(total >> bits, 0, 255)
    return window


def face_crop(image: Image.Image, size: int) -> np.ndarray:
    """The face in an aligned photograph of CelebA as U-ViT cuts it out (arXiv 2209.12152).

    The 128×128 box centred at row 121, column 89, resized by a bilinear filter.

    Args:
      image: 8-bit image of mode L or RGB, 178 wide and 218 high.
      size: height and width of the result, pixels.

    Returns:
      uint8 [size, size] or [size, size, 3].
    """
    row, column, half = 121, 89, 64
    face = image.crop((column - half, row - half, column + half, row + half))
    return np.array(face.resize((size, size), Image.Resampling.BILINEAR))
