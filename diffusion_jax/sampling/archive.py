"""The sample file of ADM's evaluation, written without holding it in memory."""

import contextlib
import json
import types
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from diffusion_jax.files import open_atomically


class SampleArchive:
    """A .npz of ADM's format that grows image by image, so that no more than a batch is in memory.

    Args:
      path: the file, on a disk or in a bucket, which appears when it is whole.
      shape: (N, H, W, 3).
      labels: [N] integers, or None for samples of an unconditional model.
      info: how the samples were made, kept as JSON in the member `info`; must be ready for JSON.
    """

    def __init__(self, path: epath.Path, shape: tuple[int, ...], labels: np.ndarray | None, info: Mapping[str, Any]):
        self._info, self._labels = json.dumps(info), labels
        self._file = contextlib.ExitStack()
        self._archive = zipfile.ZipFile(self._file.enter_context(open_atomically(path)), "w")
        self._member = self._archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._member, header)

    def __enter__(self) -> "SampleArchive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Closes the file, or leaves none where not all images came."""
        if error is None:
            self.close()
            return
        self._member.close()
        self._archive.close()
        self._file.__exit__(kind, error, trace)

    def add(self, images: np.ndarray) -> None:
        """Appends uint8 images [B, H, W, 3]."""
        self._member.write(images.tobytes())

    def close(self) -> None:
        """Adds the labels, if there are any, and `info`, and gives the file its name."""
        self._member.close()
        if self._labels is not None:
            with self._archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, self._labels)
        with self._archive.open("info.npy", "w") as member:
            np.lib.format.write_array(member, np.array(self._info))
        self._archive.close()
        self._file.close()
