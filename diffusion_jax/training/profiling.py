"""A trace of some steps of a run, for XProf, TensorBoard or Perfetto."""

import pathlib
from typing import Any

import jax

from diffusion_jax.sections import ProfiledSteps


class Profiler:
    """Traces the steps of a run into `WORKDIR/profile`.

    Args:
      steps: which.
      folder: where to write; TensorBoard wants the traces of all hosts in one place.
    """

    def __init__(self, steps: ProfiledSteps, folder: pathlib.Path):
        self.steps, self.folder, self.running = steps, folder, False

    def after(self, step: int, state: Any) -> None:
        """Starts or ends the trace where `step` asks for it, when the devices have finished the step."""
        if step == self.steps.first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self.running = True
        elif step == self.steps.last and self.running:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
