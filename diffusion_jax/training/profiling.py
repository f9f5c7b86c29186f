"""A trace of some steps of a run, for XProf, TensorBoard or Perfetto."""

import pathlib
import re
from typing import Any

import jax

from diffusion_jax.errors import UserError


class ProfiledSteps:
    """The steps that `train.profile` names.

    Args:
      text: "FIRST:LAST", from the end of step FIRST to the end of step LAST; None traces nothing.
      steps: of the run.

    Raises:
      UserError: another form, or steps that the run has not.
    """

    def __init__(self, text: str | None, steps: int):
        self.first = self.last = -1
        if text is None:
            return
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match:
            self.first, self.last = int(match[1]), int(match[2])
        if not match or not 0 < self.first < self.last <= steps:
            raise UserError(
                f"train.profile={text!r}: write FIRST:LAST with 0 < FIRST < LAST ≤ train.steps={steps}, as in 100:105"
            )


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
