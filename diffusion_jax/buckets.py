"""Objects in buckets, through fsspec. `diffusion_jax.files` is what others use: it knows disks and buckets.

The libraries that reach buckets are imported where one is named, so that nobody else needs them.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

from diffusion_jax.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# By scheme: the module that reaches it, and what to install for it.
MODULES = {"gs": ("gcsfs", "diffusion_jax[gcs]"), "s3": ("s3fs", "s3fs")}

# Bytes of a file that is read in pieces which are fetched at once.
BLOCK = 4 << 20


def scheme_of(path: str) -> str | None:
    """The scheme of a path in a bucket, "gs" or "s3"; None of a path on a disk."""
    scheme, separator, _ = path.partition("://")
    return scheme if separator and scheme in MODULES else None


def prepare(path: str) -> None:
    """Checks that a path in a bucket can be reached, and has listings asked for anew each time.

    fsspec would answer from what it once listed, and so deny files that other processes have written since.

    Raises:
      UserError: the library that reads such paths is not installed, or the path names no bucket.
    """
    scheme, _, rest = path.partition("://")
    if not rest.partition("/")[0]:
        raise UserError(f"{path}: names no bucket; write {scheme}://BUCKET/PATH")
    module, package = MODULES[scheme]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{path}: {module} is not installed, which reads {scheme}:// paths: pip install '{package}'")
    import fsspec.config

    for protocol in {"gs": ("gcs", "gs")}.get(scheme, (scheme,)):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


def check_bucket(path: str) -> None:
    """Looks for the bucket of a path, in which folders need not be made; raises OSError if there is none."""
    scheme, _, rest = path.partition("://")
    with _errors_of_disks(path):
        _file_system(path).info(f"{scheme}://{rest.partition('/')[0]}")


@contextlib.contextmanager
def open_to_read(path: str) -> Iterator[BinaryIO]:
    """An object as a file with `seek`, of which only what is read is fetched; raises OSError as a disk would."""
    with _errors_of_disks(path), _file_system(path).open(path, "rb", block_size=BLOCK) as file:
        yield cast(BinaryIO, file)


def read_bytes(path: str) -> bytes:
    """All of an object, in one request; raises OSError as a disk would."""
    with _errors_of_disks(path):
        return _file_system(path).cat_file(path)


def upload(file: pathlib.Path, path: str) -> None:
    """Copies a file into a bucket, where it appears when it has arrived whole; raises OSError as a disk would."""
    with _errors_of_disks(path):
        _file_system(path).put_file(str(file), path)


def list_files(folder: str, deep: bool = True) -> dict[str, int]:
    """The objects below a folder, in one listing: path relative to it, to size in bytes.

    Args:
      folder: the folder; empty if there is none.
      deep: list what is in folders below it too. If not, they themselves are listed, with a "/" at the end and size 0.

    Raises:
      OSError: the bucket cannot be listed.
    """
    system = _file_system(folder)
    root = system._strip_protocol(folder).rstrip("/") + "/"
    with _errors_of_disks(folder):
        try:
            entries = system.find(folder, detail=True).values() if deep else system.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
    sizes = {}
    for entry in entries:
        name = entry["name"].removeprefix(root)
        # A file named like the folder, and the empty objects with which some programs mark folders.
        if entry["name"].startswith(root) and name.strip("/"):
            sizes[name.rstrip("/") + "/" * (entry["type"] == "directory")] = entry["size"] or 0
    return sizes


def local_copy(path: str, cache: pathlib.Path) -> pathlib.Path:
    """A copy of an object, fetched unless this very version of it is there already.

    Threads and processes of a host that want the same object fetch it once.

    Args:
      path: the object.
      cache: the folder of copies; made if missing.

    Raises:
      OSError: there is no such object, or it cannot be fetched.
    """
    import fcntl

    with _errors_of_disks(path):
        facts = _file_system(path).info(path)
    version = str(facts.get("generation") or facts.get("ETag") or facts.get("mtime"))
    key = hashlib.sha256("\n".join((path, str(facts["size"]), version)).encode()).hexdigest()[:32]
    copy = cache / key / path.rpartition("/")[2]
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(copy.parent / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            partial = copy.with_name(f"{copy.name}.partial")
            with _errors_of_disks(path):
                _file_system(path).get_file(path, str(partial))
            if partial.stat().st_size != facts["size"]:
                raise OSError(errno.EIO, f"{partial.stat().st_size} bytes came of {facts['size']}", path)
            os.replace(partial, copy)
    return copy


def _file_system(path: str) -> "AbstractFileSystem":
    return _file_system_of(path.partition("://")[0], os.getpid())


@functools.cache
def _file_system_of(scheme: str, process: int) -> "AbstractFileSystem":
    """One connection for all threads of a process; one that was forked needs another."""
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True)


@contextlib.contextmanager
def _errors_of_disks(path: str) -> Iterator[None]:
    """Raises what the libraries raise as an `OSError` with a number and a reason, on which messages are built."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except OSError as error:
        if error.strerror:
            raise
        raise OSError(errno.EIO, _reason(error), path) from error
    except _errors_of(path.partition("://")[0]) as error:
        raise OSError(errno.EIO, _reason(error), path) from error


def _errors_of(scheme: str) -> tuple[type[Exception], ...]:
    """What a library raises that is no `OSError`."""
    if scheme != "gs":
        return ()
    from aiohttp import ClientError
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError

    return (ClientError, ChecksumError, HttpError, GoogleAuthError)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
