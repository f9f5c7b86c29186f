"""Files on disks and in buckets: paths as users write them, and files that nobody sees half done.

A path is an `epath.Path`: `runs/first` on a disk, `gs://bucket/runs/first` in a bucket. Its `exists`, `is_dir`,
`iterdir`, `read_text`, `unlink` and `/` do the same for both. What differs is here: writing whole files, reading in
pieces, listing large folders, and files that a library can read only from a disk.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from diffusion_jax import buckets
from diffusion_jax.errors import UserError, did_you_mean

PIECE = 1 << 20  # bytes read at once


def cache_folder() -> pathlib.Path:
    """The user's cache folder for this library, which may not exist yet: `$XDG_CACHE_HOME` or `~/.cache` decides."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "diffusion_jax"


def user_path(given: epath.PathLike) -> epath.Path:
    """A path that a user has written.

    Args:
      given: a path on a disk, in which `~` is expanded, or `gs://BUCKET/PATH` (with the extra [gcs]) or
        `s3://BUCKET/PATH` (with s3fs).

    Raises:
      UserError: another scheme, a misspelt one, no name of a bucket, or the library that reads it is not installed.
    """
    text = os.fspath(given)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)  # a single letter is a drive
    if scheme is None:
        return epath.Path(text).expanduser()
    if buckets.scheme_of(text) is None:
        known = [f"{each}://" for each in buckets.MODULES]
        written = text[: scheme.end()] + "/" * text[scheme.end() :].startswith("/")
        raise UserError(
            f"{text}: '{written}' is no scheme that is read ({', '.join(known)}){did_you_mean(written, known)}"
        )
    buckets.prepare(text)
    return epath.Path(text)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root of the disk; one in a bucket is absolute as it is, which `epath` does not know."""
    return epath.Path(path) if in_bucket(path) else epath.Path(os.path.abspath(path))


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket, not on a disk."""
    return buckets.scheme_of(os.fspath(path)) is not None


def make_folder(path: epath.PathLike) -> None:
    """Makes a folder and those above it, unless they are there; in a bucket, checks that the bucket exists.

    Raises:
      UserError: it cannot be made.
    """
    try:
        if in_bucket(path):
            buckets.check_bucket(os.fspath(path))
        else:
            os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror or error}); use another place") from error


def check_writable(path: epath.PathLike, flag: str) -> None:
    """Finds out before long work whether its result can be written; leaves nothing there.

    Args:
      path: the file to come.
      flag: what the error names, such as "--out".

    Raises:
      UserError: it is a folder, or the nearest folder above it that is there cannot be written to.
    """
    try:
        if in_bucket(path):
            buckets.check_bucket(os.fspath(path))
            return
        path = pathlib.Path(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        above = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror or error}); use another place") from error


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """Writes a file so that `path` is always whole or absent.

    Args:
      path: the file; its folder is made, and an older file of this name is replaced.
      data: the contents.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: epath.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, with `seek`, that appears as `path` when it is closed, and not at all after an error.

    On a disk it has a temporary name beside `path` and is renamed. For a bucket it is a temporary file on the disk
    (where `$TMPDIR` says), which is uploaded: objects appear when they have arrived whole. Either way its `name` is a
    path on a disk, for libraries that open files themselves.

    Args:
      path: as of `write_atomically`, which raises the same.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            complete = pathlib.Path(folder) / "object"
            with open(complete, "wb") as file:
                yield file
            buckets.upload(complete, os.fspath(path))
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number keeps two processes that write the same file from writing into each other's.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_to_read(path: epath.PathLike) -> Iterator[BinaryIO]:
    """A file to read from, with `seek`; of an object in a bucket no more is fetched than is read.

    Raises:
      OSError: there is no such file, or it cannot be read.
    """
    if in_bucket(path):
        with buckets.open_to_read(os.fspath(path)) as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def read_bytes(path: epath.PathLike) -> bytes:
    """All of a file; raises OSError as `open_to_read`."""
    if in_bucket(path):
        return buckets.read_bytes(os.fspath(path))
    with open(path, "rb") as file:
        return file.read()


def sha256_of(path: epath.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits; raises OSError as `open_to_read`."""
    digest = hashlib.sha256()
    with open_to_read(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def local_copy(path: epath.PathLike) -> pathlib.Path:
    """The file itself on a disk; of an object in a bucket a copy in the user's cache folder, for what maps files.

    A copy is fetched once by all threads and processes of a host, and again when the object has changed.

    Raises:
      OSError: there is no such object, or it cannot be fetched.
    """
    if in_bucket(path):
        return buckets.local_copy(os.fspath(path), cache_folder() / "buckets")
    return pathlib.Path(path)


def upload_folder(folder: pathlib.Path, path: epath.PathLike) -> None:
    """Copies all files at and below a folder on a disk to a folder `path` in a bucket; raises OSError."""
    for name in list_files(folder):
        buckets.upload(folder / name, os.fspath(epath.Path(path) / name))


def list_folder(folder: epath.PathLike) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, in no order; a broken link counts as a file.

    Raises:
      OSError: it cannot be listed.
    """
    if in_bucket(folder):
        names = list(buckets.list_files(os.fspath(folder), deep=False))
        return [name[:-1] for name in names if name.endswith("/")], [name for name in names if not name.endswith("/")]
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    return folders, files


def list_files(folder: epath.PathLike) -> dict[str, int]:
    """The files at and below a folder: path relative to it, with "/" between names, to size in bytes.

    A bucket is listed in one go, however many folders there are.

    Args:
      folder: the folder; empty if there is none.

    Raises:
      OSError: it cannot be listed.
    """
    if in_bucket(folder):
        return buckets.list_files(os.fspath(folder))
    root = pathlib.Path(folder)
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in root.rglob("*") if file.is_file()}
