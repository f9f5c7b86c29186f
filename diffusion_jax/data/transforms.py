"""From an encoded photograph to a square uint8 array."""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from diffusion_jax.data.sources import BadImage
from diffusion_jax.errors import UserError

Crop = Literal["adm", "celeba"]

FORMATS = ("JPEG", "PNG", "WEBP")

# Width and height of the aligned photographs of CelebA (arXiv 1411.7766).
ALIGNED_FACE = (178, 218)

# What Pillow's three decoders raise on damaged input.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes JPEG, PNG and WebP to the size and channels a model takes.

    Attributes:
      image_size: height and width of the result, pixels.
      channels: 3 (RGB) or 1 (grey).
      exif_orientation: turn the image as its EXIF tag says before cropping; False takes pixels as stored.
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
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
                if self.exif_orientation:
                    ImageOps.exif_transpose(stored, in_place=True)
                image = to_channels(stored, self.channels)
        except Image.UnidentifiedImageError:
            raise BadImage.of(name, "not a JPEG, PNG or WebP image") from None
        except DECODING_ERRORS as error:
            raise BadImage.of(name, str(error)) from error
        if self.crop == "celeba":
            if image.size != ALIGNED_FACE:
                raise UserError(
                    f"{name}: is {image.width}×{image.height} pixels, and data.crop=celeba is for the aligned "
                    f"photographs of CelebA, {ALIGNED_FACE[0]}×{ALIGNED_FACE[1]}: set data.crop=adm"
                )
            return face_crop(image, self.image_size).reshape(self.image_shape)
        return centre_crop(image, self.image_size).reshape(self.image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def __str__(self) -> str:
        orientation = "exif" if self.exif_orientation else "stored"
        return f"size={self.image_size} channels={self.channels} crop={self.crop} orientation={orientation}"


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts any mode to 8-bit RGB or grey.

    Transparent pixels are laid over white; 16-bit grey is scaled to 8 bits; CMYK and YCCK go through Pillow's plain
    conversion; colour profiles are ignored; grey is ITU-R 601 luma.

    Args:
      image: an image of any Pillow mode.
      channels: 3 for mode RGB, 1 for mode L.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint32)  # H W
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
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
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


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
