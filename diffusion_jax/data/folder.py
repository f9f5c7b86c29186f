"""Image files in class folders."""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffusion_jax.data.sources import BadImage
from diffusion_jax.data.transforms import ImageDecoder
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import absolute, in_bucket, list_files, list_folder, read_bytes, user_path
from diffusion_jax.records import Record, RecordSpec, image_records

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test"})
UNLABELLED = "unlabelled"

# Listing waits for the file system, on a network one for long.
LISTING_THREADS = 16


class ImageFolder:
    """JPEG, PNG and WebP files below a folder.

    `PATH/class/…/image` gives one class per folder, labelled in the order of the sorted names; `PATH/image` gives one
    class, "unlabelled", of label 0. If `PATH` has a folder named like the split, that one is read, otherwise `PATH`
    itself as its "train" and "all" split. Names that begin with a dot and files of other types are passed over.
    Records are ordered by class name, then by path, whatever order the file system lists them in.

    Args:
      path: the folder, on a disk or in a bucket; `~` is expanded.
      split: name of a split.
      decode: turns a file's contents into an array.

    Raises:
      UserError: the folder or split is missing, or holds no images, or holds both images and class folders, or one of
        its class folders holds none.
    """

    def __init__(self, path: str, split: str, decode: ImageDecoder):
        self._decode = decode
        given = os.fspath(absolute(user_path(path)))
        try:
            self._root = _split_folder(given, split)
            self.class_names, listings = _list_classes(self._root)
        except OSError as error:
            raise UserError(f"data.name=folder:{path}: cannot list {error.filename} ({error.strerror})") from error
        # A million names as one block of bytes: small, quick to send to worker processes, never copied on a fork.
        names = [os.fsencode(name) for listing in listings for name in sorted(listing)]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names])
        self._labels = np.repeat(np.arange(len(listings), dtype=np.int32), [len(listing) for listing in listings])
        self.num_classes = len(self.class_names)
        self.image_shape = decode.image_shape
        self.record_spec: RecordSpec = image_records(self.image_shape)
        self.identity = (
            f"folder:{os.path.basename(given)} split={split} images={len(self)} classes={self.num_classes} "
            f"listing={zlib.crc32(b'/'.join(names)):08x} {decode}"
        )

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> str:
        """The file of record `index`."""
        start = self._ends[index - 1] if index else 0
        return os.path.join(self._root, os.fsdecode(self._names[start : self._ends[index]]))

    def __getitem__(self, index: int) -> Record:
        path = self.path(index)
        try:
            data = read_bytes(path)
        except OSError as error:
            raise BadImage.of(path, error.strerror or str(error)) from error
        return {"image": self._decode(data, path), "label": self._labels[index]}


def _split_folder(path: str, split: str) -> str:
    """The folder that holds the images of a split: `path/split` or `path` itself."""
    folders = set(_list_entries(path)[0])
    divided = bool(folders) and folders <= SPLIT_NAMES
    inside = os.path.join(path, split)
    # Among class folders, "train" is a class of trains, unless it holds folders itself.
    if split in folders and (split != "train" or divided or _list_entries(inside)[0]):
        return inside
    if divided:
        raise UserError(f"data.split={split!r}: {path} has no such folder{did_you_mean(split, folders)}")
    if split not in ("train", "all"):
        raise UserError(f"data.split={split!r}: {path} has no such folder; data.split=all reads all its images")
    return path


def _list_classes(root: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """The class names, sorted, and for each the paths of its images relative to `root`, in no order."""
    folders, images = _list_entries(root)
    if folders and images:
        raise UserError(f"{root} holds both images ({images[0]}) and folders ({folders[0]}); keep one kind")
    if images:
        return (UNLABELLED,), [images]
    folders.sort()
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listings = list(pool.map(lambda name: _list_images(root, name), folders))
    for name, listing in zip(folders, listings, strict=True):
        if not listing:
            raise UserError(f"{os.path.join(root, name)}: no {', '.join(SUFFIXES)} file in this class folder")
    if not listings:
        raise UserError(f"{root}: no {', '.join(SUFFIXES)} file and no class folder in it")
    return tuple(folders), listings


def _list_images(root: str, inside: str, above: frozenset[str] = frozenset()) -> list[str]:
    """The paths, relative to `root`, of the images in `root/inside` and the folders below it."""
    folder = os.path.join(root, inside)
    if in_bucket(folder):  # where a listing is as deep as one likes
        return [
            f"{inside}/{name}" for name in list_files(folder) if all(map(_is_seen, name.split("/"))) and _is_image(name)
        ]
    folders, images = _list_entries(folder)
    found = [f"{inside}/{name}" for name in images]
    if folders:
        real = os.path.realpath(folder)
        if real in above:
            raise UserError(f"{folder}: a link to a folder that contains it; remove it")
        for name in folders:
            found += _list_images(root, f"{inside}/{name}", above | {real})
    return found


def _list_entries(folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the image files in a folder, in no order; a broken link counts as a file."""
    folders, files = list_folder(folder)
    return list(filter(_is_seen, folders)), [name for name in files if _is_seen(name) and _is_image(name)]


def _is_seen(name: str) -> bool:
    return not name.startswith(".")


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
