"""A folder of image files as they are: the samples of other programs, one file per image."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from diffusion_jax.data import Batch
from diffusion_jax.data.folder import SUFFIXES
from diffusion_jax.data.image_files import DECODING_ERRORS, open_image, parts_of
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_sets import BATCH_SIZE, check_range
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.files import read_bytes

LOSSY = (".jpg", ".jpeg", ".webp")

# Reading waits for the file system, in a bucket for long.
READING_THREADS = 16


class ImageFiles:
    """The image files of one folder, an `ImageSet` without labels; neither cropped nor resized.

    Files are taken in the order of their names, numbers in names by value.

    Args:
      folder: with JPEG, PNG or WebP files, all of one size, in RGB.

    Raises:
      UserError: no such folder, no image in it, or first images that `batches` refuses or of another range.
    """

    def __init__(self, folder: epath.Path):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
        self.paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES), key=_order)
        if not self.paths:
            raise UserError(f"{folder}: no {', '.join(SUFFIXES)} file in it")
        self.name = str(folder)
        self.settings: ImageSettings | None = None
        self.count = len(self.paths)
        height, width, channels = _read(self.paths[0]).shape
        self.image_shape = (height, width, channels)
        check_range(next(self.batches())["image"], self.name)

    def batches(self) -> Iterator[Batch]:
        """Raises UserError at a file that is damaged, not RGB, or of another size than the first."""
        for start in range(0, self.count, BATCH_SIZE):
            images = []
            paths = self.paths[start : start + BATCH_SIZE]
            with ThreadPoolExecutor(READING_THREADS) as pool:
                read = list(pool.map(_read, paths))
            for path, image in zip(paths, read, strict=True):
                if image.shape != self.image_shape:
                    ours, first = (f"{shape[0]}×{shape[1]}" for shape in (image.shape, self.image_shape))
                    raise UserError(f"{path}: is {ours}, but {self.paths[0].name} is {first}; all must be of one size")
                images.append(image)
            yield {"image": np.stack(images)}

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON."""
        lossy = sum(path.suffix.lower() in LOSSY for path in self.paths)
        names = hashlib.sha256("\n".join(path.name for path in self.paths).encode()).hexdigest()
        return {
            "folder": self.name,
            "names_sha256": names,
            "count": self.count,
            "image_shape": list(self.image_shape),
            "lossy_files": lossy,
        }


def _order(path: epath.Path) -> list[tuple[int, int, str]]:
    """10.png comes after 9.png."""
    return [(1, int(word), "") if word.isdecimal() else (0, 0, word) for word in re.split(r"(\d+)", path.name)]


def _read(path: epath.Path) -> np.ndarray:
    try:
        image = open_image(parts_of(read_bytes(path)).pixels)
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); repair or remove it") from error
    if image.mode != "RGB":
        raise UserError(f"{path}: is of mode {image.mode}; samples are RGB, so save them as 8-bit RGB")
    return np.asarray(image)
