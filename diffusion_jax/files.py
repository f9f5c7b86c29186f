"""Where the library keeps files of its own, and how it writes files that nobody sees half done."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


def cache_folder() -> pathlib.Path:
    """The user's cache folder for this library, which may not exist yet: `$XDG_CACHE_HOME` or `~/.cache` decides."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "diffusion_jax"


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it, so that `path` is always whole or absent.

    Args:
      path: the file; its folder is made, and an older file of this name is replaced.
      data: the contents.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write to that appears as `path` when it is closed, and not at all after an error.

    Args:
      path: as of `write_atomically`, which raises the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number keeps two processes that write the same file from writing into each other's.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
