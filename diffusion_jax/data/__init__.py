"""Data: sources of uint8 images with labels, a deterministic order over them, and batches read in parallel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffusion_jax.data.digits import Digits
from diffusion_jax.data.feed import Feed
from diffusion_jax.data.folder import ImageFolder
from diffusion_jax.data.latents import LatentCache, image_settings
from diffusion_jax.data.loader import Batch, BatchContents, all_records, batches
from diffusion_jax.data.shapes import ANNOTATIONS, Annotation, Shapes
from diffusion_jax.data.sources import BadImage, SkipBadImages, Source
from diffusion_jax.data.tfds import Tfds
from diffusion_jax.data.transforms import Crop, ImageDecoder
from diffusion_jax.errors import UserError, did_you_mean

__all__ = [
    "BadImage",
    "Batch",
    "BatchContents",
    "DataConfig",
    "Feed",
    "LatentCache",
    "SkipBadImages",
    "Source",
    "all_records",
    "batches",
    "open_source",
]


@dataclass(frozen=True)
class DataConfig:
    """Which images to read, and how.

    Attributes:
      name: "digits", "shapes" (or "shapes:images=20000,shapes=3"), "folder:PATH" or "tfds:NAME"; or
        "cache:DIR", the latents of images that `diffusion-jax encode` wrote.
      image_size: height and width of the images handed out, in pixels; of a cache, those of the images encoded.
      split: "train", "test", …; "all" reads everything that is not divided into splits.
      channels: 3 (RGB) or 1 (grey).
      flip: mirror images at random; done on the device by the training step, not here.
      exif_orientation: turn photographs upright as their EXIF tag says. False takes the pixels as stored, which is what
        ADM and DiT did.
      crop: how photographs become squares: "adm", the centre of the short side's length; "celeba", the face in the
        aligned photographs of CelebA.
      on_bad_image: "raise" stops at an image that cannot be decoded and names it; "skip" reads the next one instead
        and counts it in the batch's `bad_images`.
      annotations: what records hold beside image, label and what the conditioner reads, where the data set has it:
        "boxes", "caption", "mask", "segmentation".
      data_dir: where TFDS keeps prepared data sets; None is its own default.
      num_threads: reading threads per process (per worker if there are workers), ≥ 1.
      num_workers: reading processes beside the main one, ≥ 0; 0 reads with threads only.
      prefetch: number of batches read ahead, ≥ 1.
    """

    name: str
    image_size: int
    split: str = "train"
    channels: int = 3
    flip: bool = False
    exif_orientation: bool = True
    crop: Crop = "adm"
    on_bad_image: Literal["raise", "skip"] = "raise"
    annotations: tuple[Annotation, ...] = ()
    data_dir: str | None = None
    num_threads: int = 8
    num_workers: int = 0
    prefetch: int = 2

    def __post_init__(self):
        for field, least in {"image_size": 1, "num_threads": 1, "num_workers": 0, "prefetch": 1}.items():
            if getattr(self, field) < least:
                raise UserError(f"data.{field}={getattr(self, field)}: must be at least {least}")
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: must be 1 (grey) or 3 (RGB)")
        if self.on_bad_image not in ("raise", "skip"):
            raise UserError(f"data.on_bad_image={self.on_bad_image!r}: must be 'raise' or 'skip'")
        if self.crop not in ("adm", "celeba"):
            raise UserError(f"data.crop={self.crop!r}: must be 'adm' or 'celeba'")


def open_source(config: DataConfig, reads: Sequence[str] = ()) -> Source:
    """Opens the data set that a config names.

    Args:
      config: the config.
      reads: fields that records must hold beside those of `config.annotations`, where the data set has them.

    Raises:
      UserError: the name is unknown, the data is missing or empty, or the set has no such split or size.
    """
    kind, _, place = config.name.partition(":")
    if config.annotations and kind != "shapes":
        raise UserError(f"data.annotations={config.annotations}: '{config.name}' has none; set data.annotations=()")
    if kind == "cache" and place:
        return LatentCache(place, image_settings(config), mirrored=config.flip)
    decode = ImageDecoder(config.image_size, config.channels, config.exif_orientation, config.crop)
    source: Source
    if config.name == "digits":
        source = Digits(config.split, config.image_size, config.channels)
    elif kind == "shapes":
        source = Shapes.parse(
            place,
            split=config.split,
            image_size=config.image_size,
            channels=config.channels,
            annotations=dict.fromkeys((*config.annotations, *(name for name in ANNOTATIONS if name in reads))),
        )
    elif kind == "folder" and place:
        source = ImageFolder(place, config.split, decode)
    elif kind == "tfds" and place:
        source = Tfds(place, config.split, decode, config.data_dir)
    else:
        known = ("digits", "shapes", "folder:PATH", "tfds:NAME", "cache:DIR")
        raise UserError(f"data.name={config.name!r}: no such data set{did_you_mean(config.name, known)}")
    return SkipBadImages(source) if config.on_bad_image == "skip" else source
