"""A trace of some steps of a run, for XProf, TensorBoard or Perfetto."""

import os
import pathlib
import tempfile
from typing import Any

import jax
from etils import epath

from diffusion_jax.files import in_bucket, upload_folder
from diffusion_jax.sections import ProfiledSteps


class Profiler:
    """Traces the steps of a run into `WORKDIR/profile`.

    Args:
      steps: which.
      folder: where to write; TensorBoard wants the traces of all hosts in one place. JAX writes to disks alone, so
        that a trace for a bucket is uploaded when it is whole.
    """

    def __init__(self, steps: ProfiledSteps, folder: epath.Path):
        self.steps, self.folder, self.running = steps, folder, False
        self.temporary: tempfile.TemporaryDirectory[str] | None = None

    def after(self, step: int, state: Any) -> None:
        """Starts or ends the trace where `step` asks for it, when the devices have finished the step."""
        if step == self.steps.first:
            jax.block_until_ready(state)
            if in_bucket(self.folder):
                self.temporary = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self.temporary.name if self.temporary else os.fspath(self.folder))
            self.running = True
        elif step == self.steps.last and self.running:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            if self.temporary:
                with self.temporary as folder:
                    upload_folder(pathlib.Path(folder), self.folder)
