"""Images of a checkpoint as a set to evaluate: drawn as they are measured, written only if asked."""

import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from diffusion_jax.commands.sample import open_guides, sampling_overrides
from diffusion_jax.data import Batch
from diffusion_jax.errors import UserError
from diffusion_jax.parallel import processes
from diffusion_jax.pictures import to_rgb
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.generation import SampleStream, parse_labels
from diffusion_jax.training.restore import restore_for_sampling

UINT8_RULE = "trunc(127.5x+128)"


class GeneratedImages:
    """The samples of a run, an `ImageSet` that draws each image when it is asked for it.

    Args:
      values: the flags of `sample`.
      save: a .npz to write the images to, in ADM's format; None writes none.

    Raises:
      UserError: no such run or checkpoint, or flags that do not fit it.
    """

    def __init__(self, values: flags.FlagValues, save: pathlib.Path | None = None):
        if values.num is None:
            raise UserError("--workdir needs --num, the number of samples to draw")
        self._step = values.step
        if values.step == "latest" and pathlib.Path(values.workdir, "checkpoints").is_dir():
            # Stated in the result; training may go on meanwhile.
            checkpoints = Checkpoints(values.workdir, read_only=True)
            self._step = str(checkpoints.choose("latest"))
            checkpoints.close()
        overrides = sampling_overrides(values)
        self._system, mesh, self._model, self._first_stage = restore_for_sampling(values.workdir, self._step, overrides)
        self._labels = parse_labels(values.labels, values.num, self._system.facts.num_classes, values.seed)
        self._stream = SampleStream(self._system, mesh, open_guides(values, self._system))
        self._values, self._overrides, self._save = values, overrides, save
        data = self._system.data
        self.name = f"samples of {values.workdir}"
        self.count = values.num
        self.image_shape = (data.image_size, data.image_size, 3)

    def batches(self) -> Iterator[Batch]:
        """Draws the images in order; all processes of the run must take part."""
        archive = None
        if self._save is not None and processes.is_main():
            archive = SampleArchive(self._save, (self.count, *self.image_shape), self._labels)
        start = 0
        for images in self._stream(self._model, self._first_stage, self._labels, self._values.seed):
            images = to_rgb(images)
            if archive is not None:
                archive.add(images)
            yield {"image": images, "label": self._labels[start : start + len(images)]}
            start += len(images)
            if processes.is_main():
                print(f"{start}/{self.count} samples", flush=True)
        if archive is not None:
            archive.close()

    def describe(self) -> dict[str, Any]:
        """What a result file says of them, ready for JSON."""
        config = self._system.config
        return {
            "workdir": str(self._values.workdir),
            "checkpoint_step": int(self._step),
            "seed": self._values.seed,
            "label_law": self._values.labels,
            "uint8": UINT8_RULE,
            "overrides": self._overrides,
            "sampler": dict(config["sampler"]),
            "guidance": dict(config["guidance"]),
            "count": self.count,
            "image_shape": list(self.image_shape),
        }


class SampleArchive:
    """A .npz of ADM's format that grows image by image, so that no more than a batch is in memory.

    Args:
      path: the file, which appears when it is whole.
      shape: (N, H, W, 3).
      labels: [N] integers.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], labels: np.ndarray):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._partial, self._labels = path, path.with_name(f"{path.name}.partial"), labels
        self._archive = zipfile.ZipFile(self._partial, "w")
        self._member = self._archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._member, header)

    def add(self, images: np.ndarray) -> None:
        """Appends uint8 images [B, H, W, 3]."""
        self._member.write(images.tobytes())

    def close(self) -> None:
        """Adds the labels and gives the file its name."""
        self._member.close()
        with self._archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, self._labels)
        self._archive.close()
        self._partial.replace(self._path)
