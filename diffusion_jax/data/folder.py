"""Image files in class folders."""

import os
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffusion_jax.data.sources import BadImage
from diffusion_jax.data.transforms import ImageDecoder
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import absolute, in_bucket, list_files, list_folder, read_bytes, user_path
from diffusion_jax.records import Record, RecordSpec, image_records

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

# The names of split folders, in any case, by the name of the split.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
UNLABELLED = "unlabelled"

# Listing waits for the file system, on a network one for long.
LISTING_THREADS = 16


class ImageFolder:
    """JPEG, PNG and WebP files below a folder.

    `PATH/class/…/image` gives one class per folder, labelled in the order of the sorted names; `PATH/image` gives one
    class, "unlabelled", of label 0. If `PATH` has a folder named like the split, that one is read, otherwise `PATH`
    itself as its "train" and "all" split; of the usual names of splits case and spelling (`SPELLINGS`) make no
    difference. Names that begin with a dot and files of other types are passed over. Records are ordered by class name,
    then by path, whatever order the file system lists them in.

    Args:
      path: the folder, on a disk or in a bucket; `~` is expanded.
      split: name of a split.
      decode: turns a file's contents into an array.

    Raises:
      UserError: the folder or split is missing, or holds no images, or holds both images and class folders, or one of
        its class folders holds none or holds splits.

    Attributes:
      passed_over: number of files of other types, by suffix.
    """

    def __init__(self, path: str, split: str, decode: ImageDecoder):
        self._decode = decode
        given = os.fspath(absolute(user_path(path)))
        try:
            self._root = _split_folder(given, split)
            self.passed_over: Counter[str] = Counter()
            self.class_names, listings = _list_classes(self._root, self.passed_over)
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
        return {"image": self._decode(_contents(path), path), "label": self._labels[index]}

    def check(self, index: int) -> BadImage | None:
        """What the head of an image file says against it, which is read fast; None if nothing.

        Raises:
          UserError: the crop does not take images of its size.
        """
        path = self.path(index)
        try:
            self._decode.check(_contents(path), path)
        except BadImage as error:
            return error
        return None


def _contents(path: str) -> bytes:
    """A file; raises BadImage if it cannot be read."""
    try:
        return read_bytes(path)
    except OSError as error:
        raise BadImage.of(path, error.strerror or str(error)) from error


def _split_folder(path: str, split: str) -> str:
    """The folder that holds the images of a split: `path/split` or `path` itself."""
    folders = set(_list_entries(path)[0])
    divided = bool(folders) and all(map(_split_named, folders))
    wanted = _split_named(split) or split
    found = {split} & folders or {name for name in folders if (_split_named(name) or name) == wanted}
    if len(found) > 1:
        raise UserError(f"data.split={split!r}: may be any of {', '.join(sorted(found))} in {path}; name it as written")
    for name in found:
        inside = os.path.join(path, name)
        # Among class folders, "train" is a class of trains, unless it holds folders itself.
        if wanted != "train" or divided or _list_entries(inside)[0]:
            return inside
    if divided:
        raise UserError(f"data.split={split!r}: {path} has no such folder{did_you_mean(split, folders)}")
    if split not in ("train", "all"):
        raise UserError(f"data.split={split!r}: {path} has no such folder; data.split=all reads all its images")
    return path


def _split_named(name: str) -> str | None:
    """The split that the name of a folder says; None if it says none."""
    return next((split for split, spellings in SPELLINGS.items() if name.lower() in spellings), None)


def _list_classes(root: str, passed_over: Counter[str]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The class names, sorted, and for each the paths of its images relative to `root`, in no order.

    Adds to `passed_over` how many files are of other types, by suffix.
    """
    folders, images = _list_entries(root, passed_over)
    if folders and images:
        raise UserError(f"{root} holds both images ({images[0]}) and folders ({folders[0]}); keep one kind")
    if images:
        return (UNLABELLED,), [images]
    folders.sort()
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        counted = list(pool.map(lambda name: _list_images(root, name), folders))
    listings = [listing for listing, _ in counted]
    for name, listing in zip(folders, listings, strict=True):
        _check_undivided(root, name, listing)
    for name, (listing, others) in zip(folders, counted, strict=True):
        passed_over.update(others)
        if not listing:
            there = f" (it has {describe_types(others)})" if others else ""
            raise UserError(f"{os.path.join(root, name)}: no {', '.join(SUFFIXES)} file in this class folder{there}")
    if not listings:
        raise UserError(f"{root}: no {', '.join(SUFFIXES)} file and no class folder in it")
    return tuple(folders), listings


def _check_undivided(root: str, name: str, listing: list[str]) -> None:
    """Refuses a class folder that holds the folders of several splits, all of which would be read as one."""
    inside = {path.split("/", 2)[1] for path in listing if path.count("/") > 1}
    splits = sorted(each for each in inside if _split_named(each))
    if len({_split_named(each) for each in splits}) > 1:
        raise UserError(
            f"{os.path.join(root, name)}: holds the splits {', '.join(splits)}, and would be one class of all of them: "
            f"name this folder (data.name=folder:{os.path.join(root, name)}), or put the splits above the classes"
        )


def _list_images(root: str, inside: str, above: frozenset[str] = frozenset()) -> tuple[list[str], Counter[str]]:
    """The paths, relative to `root`, of the images in `root/inside` and the folders below it.

    Beside them, how many files are of other types, by suffix.
    """
    folder = os.path.join(root, inside)
    others: Counter[str] = Counter()
    if in_bucket(folder):  # where a listing is as deep as one likes
        seen = [name for name in list_files(folder) if all(map(_is_seen, name.split("/")))]
        others.update(_suffix(name) for name in seen if not _is_image(name))
        return [f"{inside}/{name}" for name in seen if _is_image(name)], others
    folders, images = _list_entries(folder, others)
    found = [f"{inside}/{name}" for name in images]
    if folders:
        real = os.path.realpath(folder)
        if real in above:
            raise UserError(f"{folder}: a link to a folder that contains it; remove it")
        for name in folders:
            deeper, further = _list_images(root, f"{inside}/{name}", above | {real})
            found += deeper
            others.update(further)
    return found, others


def describe_types(counts: Counter[str]) -> str:
    """Numbers of files by suffix, such as "10 .gif, 2 .txt", the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in ordered)


def _list_entries(folder: str, others: Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """The names of the folders and of the image files in a folder, in no order; a broken link counts as a file.

    Adds to `others` how many files are of other types, by suffix.
    """
    folders, files = list_folder(folder)
    seen = list(filter(_is_seen, files))
    if others is not None:
        others.update(_suffix(name) for name in seen if not _is_image(name))
    return list(filter(_is_seen, folders)), list(filter(_is_image, seen))


def _is_seen(name: str) -> bool:
    return not name.startswith(".")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
