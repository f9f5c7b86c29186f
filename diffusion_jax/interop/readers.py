"""Readers of foreign weight files: names to arrays, without running anything that a file contains."""

from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from diffusion_jax.errors import UserError
from diffusion_jax.files import local_copy
from diffusion_jax.interop.torch_files import read_torch_file


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of a .safetensors file by name; each is read from disk when asked for.

    Args:
      path: the file; one in a bucket is copied to this host first.

    Raises:
      UserError: it is not a whole safetensors file.
    """

    def __init__(self, path: epath.Path):
        try:
            self._file = safe_open(local_copy(path), framework="numpy")
        except SafetensorError as error:
            raise UserError(f"'{path}' is no complete .safetensors file ({error}): fetch it again") from error
        self._names = tuple(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def open_state_dict(path: epath.Path, published: str, section: str | None = None) -> Mapping[str, np.ndarray]:
    """Opens a file of weights.

    Args:
      path: a .safetensors file, or one of PyTorch's (.pt, .pth, .ckpt, .bin).
      published: where the public files of this kind are to be had, for the message when there is none at `path`.
      section: of a PyTorch checkpoint that holds several sets of weights, which one.

    Returns:
      Name to array, in the layout of the file.

    Raises:
      UserError: there is no such file, it is damaged, or its format is not read.
    """
    if not path.is_file():
        raise UserError(f"no weights at '{path}': {published}")
    if path.suffix in TORCH_SUFFIXES:
        return read_torch_file(path, section)
    if path.suffix != ".safetensors":
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise UserError(f"'{path}' is of a format that is not read; {known} files and diffusers folders are")
    return SafetensorsFile(path)
