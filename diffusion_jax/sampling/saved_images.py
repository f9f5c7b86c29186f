"""Samples that are counted, and written to a file if wanted, as they are taken."""

import contextlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from diffusion_jax.data import Batch
from diffusion_jax.parallel import processes
from diffusion_jax.sampling.archive import SampleArchive
from diffusion_jax.sampling.sample_set import DrawnImages


class SavedImages:
    """An `ImageSet` of drawn images that prints how far it is and may write them.

    Args:
      drawn: the samples.
      path: a .npz to write them to, in ADM's format; None writes none.
    """

    def __init__(self, drawn: DrawnImages, path: epath.Path | None):
        self.drawn, self.path = drawn, path
        self.name, self.count, self.image_shape = drawn.name, drawn.count, drawn.image_shape
        self.settings = drawn.settings

    def batches(self) -> Iterator[Batch]:
        """See `DrawnImages`."""
        with contextlib.ExitStack() as file:
            archive = None
            if self.path is not None and processes.is_main():
                shape = (self.count, *self.image_shape)
                archive = file.enter_context(SampleArchive(self.path, shape, self.drawn.labels, self.describe()))
            taken = 0
            for batch in self.drawn.batches():
                if archive is not None:
                    archive.add(batch["image"])
                yield batch
                taken += len(batch["image"])
                if processes.is_main():
                    print(f"{taken}/{self.count} samples", flush=True)

    def describe(self) -> dict[str, Any]:
        """See `DrawnImages`."""
        return self.drawn.describe()
