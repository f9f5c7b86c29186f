"""Images of which a part is given: inpainting by a model that was trained for nothing of the kind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusion_jax.diffusion.transforms import Transform, known_region
from diffusion_jax.errors import UserError
from diffusion_jax.files import open_to_read, user_path
from diffusion_jax.pictures import from_uint8


class KnownPixels(NamedTuple):
    """What is known of each sample.

    Attributes:
      image: [N, H, W, C] uint8.
      mask: [N, H, W] bool, True where the pixel is known.
    """

    image: Any
    mask: Any

    def rows(self, index: np.ndarray) -> "KnownPixels":
        """Those of samples `index`; the last one stands for all behind it."""
        rows = np.minimum(index, len(self.image) - 1)
        return KnownPixels(self.image[rows], self.mask[rows])

    def transform(self, first_stage: Any, latent_shape: tuple[int, int, int]) -> Transform:
        """Holds the predicted latents at those of the image wherever all pixels of a latent are known."""
        batch, height, width = self.mask.shape
        pixels = from_uint8(self.image)
        latents = first_stage.encode(pixels, jnp.zeros((batch, *latent_shape)))  # [B, h, w, c]
        rows, columns = height // latent_shape[0], width // latent_shape[1]
        cells = self.mask.reshape(batch, latent_shape[0], rows, latent_shape[1], columns)
        return known_region(latents, cells.all((2, 4))[..., None])  # [B, h, w, 1]

    def paste(self, images: jax.Array) -> jax.Array:
        """Puts the known pixels into [B, H, W, C] uint8 images."""
        return jnp.where(self.mask[..., None], self.image, images)


def read_known_pixels(path: epath.PathLike, num: int, image_shape: tuple[int, int, int]) -> KnownPixels:
    """Reads the file that --known names.

    Args:
      path: a .npz with `image` uint8 [N, H, W, 3] and `mask` [N, H, W], not 0 where a pixel is known.
      num: number of samples, N; one image may serve all.
      image_shape: (H, W, C) of the model's images; those of one channel are the mean of three.

    Returns:
      The known pixels of every sample.

    Raises:
      UserError: no such file, or arrays of other names, shapes or dtypes.
    """
    try:
        with open_to_read(user_path(path)) as file, np.load(file) as archive:
            image, mask = archive["image"], archive["mask"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"--known {path}: needs the arrays image and mask ({error})") from error
    height, width, channels = image_shape
    wanted = ((num, height, width, 3), (num, height, width))
    if len(image) == len(mask) == 1:
        wanted = ((1, *wanted[0][1:]), (1, *wanted[1][1:]))
    if (image.shape, mask.shape) != wanted or image.dtype != np.uint8:
        raise UserError(
            f"--known {path}: has image {image.dtype} {image.shape} and mask {mask.shape}; this run needs uint8 "
            f"{(num, height, width, 3)}, or one image for all, and a mask of its pixels"
        )
    if channels == 1:
        image = image.mean(3, keepdims=True).round().astype(np.uint8)  # [N, H, W, 1]
    return KnownPixels(image, mask != 0)
