"""Sets of images to measure: sample files and data sets, both read in batches."""

import contextlib
import dataclasses
import json
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np
from etils import epath

from diffusion_jax.data import Batch, LatentCache, Source, all_records, open_source
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.files import open_to_read, sha256_of, user_path
from diffusion_jax.parallel import processes
from diffusion_jax.pictures import to_rgb

BATCH_SIZE = 256
SECONDS_BETWEEN_WORDS = 10

# What zipfile and NumPy raise on damaged archives; RuntimeError where a damaged flag asks for a password.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
DATASETS = ("digits", "digits:SPLIT", "shapes", "folder:PATH", "tfds:NAME", "FILE.npz")


class ImageSet(Protocol):
    """A finite set of uint8 images, with or without labels.

    Attributes:
      name: what error messages call it.
      count: N.
      image_shape: (H, W, C).
    """

    name: str
    count: int
    image_shape: tuple[int, int, int]

    @property
    def settings(self) -> ImageSettings | None:
        """How images became what these are, or those that the model of these was trained on; None if not known."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Every image once, in order: `image` uint8 [B, H, W, C] and, if there are labels, `label` int [B]."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON: what it is, exactly, and how many images."""
        ...


class SampleFile:
    """The .npz files of ADM: `arr_0` uint8 [N, H, W, 3], and `arr_1` integer labels [N] in files of labelled samples.

    The images are streamed, so that 50,000 large ones need no memory.

    Args:
      path: the file.
      beside_statistics: take images that are in a file of statistics, as those of ADM's references are.

    Attributes:
      labels: [N] integers, or None.
      info: what the program that wrote the file says of it: `diffusion-jax sample` adds a JSON string `info`.

    Raises:
      UserError: no such file, a damaged one, one of statistics, or arrays of other names, dtypes, shapes or ranges.
    """

    def __init__(self, path: epath.Path, beside_statistics: bool = False):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; `diffusion-jax sample` writes samples.npz")
        with _whole(path), open_to_read(path) as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if "arr_0" not in names:
                raise UserError(f"{path}: has no images 'arr_0' (it has {', '.join(sorted(names))})")
            if {"mu", "sigma"} <= names and not beside_statistics:
                raise UserError(
                    f"{path}: holds statistics (mu, sigma) beside images, so that it is a reference, not samples: name "
                    "it by --reference"
                )
            with archive.open("arr_0.npy") as stream:
                shape, fortran_order, dtype = _header(stream)
            self.labels = _labels(archive, path) if "arr_1" in names else None
            self.info = stated_info(archive) if "info" in names else {}
        if dtype != np.uint8:
            raise UserError(f"{path}: arr_0 is {dtype}; images are uint8 in 0…255, so quantise them before saving")
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or fortran_order:
            order = " in Fortran order" if fortran_order else ""
            raise UserError(f"{path}: arr_0 has shape {list(shape)}{order}; images are [N, H, W, 3], N ≥ 1, in C order")
        if self.labels is not None and self.labels.shape != shape[:1]:
            raise UserError(f"{path}: arr_1 has shape {list(self.labels.shape)}; {shape[0]} images need [{shape[0]}]")
        self.settings = ImageSettings.recorded(self.info.get("data"))
        self.name = str(path)
        self.count = shape[0]
        self.image_shape = (shape[1], shape[2], shape[3])
        check_range(next(self.batches())["image"], self.name)

    def batches(self) -> Iterator[Batch]:
        """Raises UserError if the file ends early or its checksum is wrong."""
        with (
            _whole(self.path),
            open_to_read(self.path) as file,
            zipfile.ZipFile(file) as archive,
            archive.open("arr_0.npy") as stream,
        ):
            _header(stream)
            for start in range(0, self.count, BATCH_SIZE):
                stop = min(start + BATCH_SIZE, self.count)
                data = stream.read((stop - start) * int(np.prod(self.image_shape)))
                images = np.frombuffer(data, np.uint8).reshape(stop - start, *self.image_shape)
                yield {"image": images} | ({} if self.labels is None else {"label": self.labels[start:stop]})

    def describe(self) -> dict[str, Any]:
        digest = sha256_of(self.path)
        facts = {"file": self.path.name, "sha256": digest, "count": self.count, "image_shape": list(self.image_shape)}
        facts |= {key: self.info[key] for key in ("uint8", "label_law", "data") if key in self.info}
        if self.labels is None:
            return {**facts, "label_counts": None}
        counts = {str(k): n for k, n in sorted(Counter(self.labels.tolist()).items())}
        return {**facts, "label_counts": counts, "labels_grouped": grouped(self.labels)}


class SourceImages:
    """All images of a data set, grey ones as three equal channels.

    Args:
      source: the data set.
      settings: under which it was opened; None where it knows of none.

    Raises:
      UserError: it is a cache of latents.
    """

    def __init__(self, source: Source, settings: ImageSettings | None = None):
        if isinstance(source, LatentCache):
            raise UserError(f"{source.identity}: holds latents, not images; name the images that were encoded")
        self._source, self.settings = source, settings
        self.name = source.identity
        self.count = len(source)
        self.image_shape = (*source.image_shape[:2], 3)

    def batches(self) -> Iterator[Batch]:
        for batch in all_records(self._source, BATCH_SIZE):
            yield {**batch, "image": to_rgb(batch["image"])}

    def describe(self) -> dict[str, Any]:
        data = {"data": self.settings.facts()} if self.settings else {}
        return {"identity": self._source.identity, "count": self.count, **data}


def open_data_set(name: str, image_size: int, split: str, settings: ImageSettings) -> SourceImages:
    """All images of "digits", "shapes", "folder:PATH" or "tfds:NAME" under settings, as far as they concern it."""
    kind = name.partition(":")[0]
    if kind == "digits":  # grey ones as they are, in any number of channels
        return SourceImages(open_source(ImageSettings().data(name, image_size, split)))
    return SourceImages(
        open_source(settings.data(name, image_size, split)), dataclasses.replace(settings, dataset=kind)
    )


def open_image_set(
    name: str, image_shape: tuple[int, int, int], split: str = "train", settings: ImageSettings | None = None
) -> ImageSet:
    """Opens what `--reference` names.

    Args:
      name: "FILE.npz" (see `SampleFile`), "digits" or "digits:SPLIT", "shapes" or "shapes:OPTIONS", "folder:PATH" or
        "tfds:NAME".
      image_shape: (H, W, C) that the images must have; those of `shapes` are rendered at its size, and those of
        `folder` and `tfds` cropped and resized to it as for training.
      split: of the data set, where the name says nothing of it.
      settings: how its images become those that the samples are compared with; None is as of `ImageSettings()`.

    Raises:
      UserError: there is no such data, or it is of another size.
    """
    kind, _, rest = name.partition(":")
    if name.endswith(".npz"):
        images = SampleFile(user_path(name), beside_statistics=True)
        if images.image_shape != image_shape:
            ours, theirs = (f"{height}×{width}" for height, width, _ in (images.image_shape, image_shape))
            raise UserError(f"{name}: has images of {ours}, the samples are {theirs}; both must be of one size")
        return images
    if kind not in ("digits", "shapes", "folder", "tfds"):
        raise UserError(f"'{name}' is no data set and no .npz file{did_you_mean(name, DATASETS)}")
    height, width, _ = image_shape
    if height != width:
        raise UserError(f"{name}: data sets hold square images, the samples are {height}×{width}; give a .npz file")
    split = rest or split if kind == "digits" else split
    data_name = "digits" if kind == "digits" else name
    return open_data_set(data_name, height, split, settings or ImageSettings())


def with_progress(images: ImageSet) -> Iterator[Batch]:
    """The batches of a set; says on stderr every ten seconds how many images have been taken."""
    taken, last = 0, time.monotonic()
    for batch in images.batches():
        yield batch
        taken += len(batch["image"])
        if processes.is_main() and time.monotonic() - last > SECONDS_BETWEEN_WORDS:
            last = time.monotonic()
            print(f"{images.name}: {taken}/{images.count} images measured", file=sys.stderr, flush=True)


def grouped(labels: np.ndarray) -> bool:
    """Whether labels [N] come class by class, in any order of the classes, not mixed or in turn.

    Neighbours are of one class more often than halfway from independent draws (Σ p²) to always.
    """
    if len(labels) < 2:
        return False
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    by_chance = float((shares**2).sum())
    return bool(np.mean(labels[1:] == labels[:-1]) > (1 + by_chance) / 2)


def check_range(images: np.ndarray, name: str) -> None:
    """Refuses images in 0 … 1 or −1 … 1 that were cast to uint8; black ones pass, which broken models draw.

    Args:
      images: uint8 [B, H, W, C], the first of a set.
      name: of the set.

    Raises:
      UserError: 1 is among the values, and all are 0 and 1, or 0, 1 and 255.
    """
    if images.max() == 1:
        raise UserError(
            f"{name}: the first {len(images)} images hold 0 and 1 alone; images are uint8 in 0…255, so multiply those "
            "in 0…1 by 255 before saving"
        )
    if ((images <= 1) | (images == 255)).all() and (images == 1).any():
        raise UserError(
            f"{name}: the first {len(images)} images hold 0, 1 and 255 alone, as those in −1…1 do that were cast to "
            "uint8; save 127.5 (x + 1), rounded"
        )


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    """Reports what reading a damaged .npz raises as a `UserError` that names the file."""
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is damaged or no .npz file ({reason}); write or fetch it again") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the head of a .npy stream up to its data: shape, whether in Fortran order, dtype."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def stated_info(archive: zipfile.ZipFile) -> dict[str, Any]:
    """What this library states in the member `info` of a .npz; nothing where another program put another `info`."""
    with archive.open("info.npy") as stream:
        shape, _, dtype = _header(stream)
        if dtype.kind != "U" or shape:
            return {}
    with archive.open("info.npy") as stream:
        text = str(np.lib.format.read_array(stream))
    try:
        info = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return info if isinstance(info, dict) else {}


def _labels(archive: zipfile.ZipFile, path: epath.Path) -> np.ndarray:
    with archive.open("arr_1.npy") as stream:
        dtype = _header(stream)[2]
    if dtype.hasobject:
        raise UserError(f"{path}: arr_1 is {dtype}; labels are integers")
    with archive.open("arr_1.npy") as stream:
        labels = np.lib.format.read_array(stream)
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: arr_1 is {labels.dtype}; labels are integers")
    return labels
