"""What a run tells about itself: a progress line, `metrics.jsonl`, and TensorBoard where TensorFlow is installed."""

import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import progress

from diffusion_jax.files import write_atomically

LOG = "metrics.jsonl"


class MetricWriter:
    """Writes scalars per step to `WORKDIR/metrics.jsonl` and, with the extra [tf], to TensorBoard.

    Args:
      workdir: the run's folder, which exists.
      resume_step: lines of later steps are dropped, since the run will write them again.

    Attributes:
      last: the newest line that was kept; None if there is none.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        path = workdir / LOG
        self.last: dict[str, Any] | None = None
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if _step(line) <= resume_step]
            write_atomically(path, "".join(lines).encode())
            self.last = json.loads(lines[-1]) if lines else None
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self.tensorboard = None
        if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
            from clu import metric_writers

            self.tensorboard = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir / "tensorboard")))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line: the step, the time in seconds since 1970, and the scalars."""
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **scalars}) + "\n")
        if self.tensorboard:
            self.tensorboard.write_scalars(step, scalars)

    def close(self) -> None:
        """Flushes and closes the files."""
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()


def averages(metrics: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> dict[str, float]:
    """The mean of each metric over some steps, except of those named in `without`."""
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0] if name not in without}


def _step(line: str) -> float:
    """The step of a line; a line cut off by a kill counts as later than all."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


class ProgressLine:
    """Loss, images/s and time to go: a bar on a terminal, a line per report elsewhere.

    Args:
      start: first step.
      total: last step.
      quiet: print nothing (processes other than the main one).
    """

    def __init__(self, start: int, total: int, quiet: bool):
        self.total = total
        self.quiet = quiet
        self.bar = None
        if not quiet and sys.stderr.isatty():
            self.bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
            )
            self.task = self.bar.add_task("training", total=total, completed=start)
            self.bar.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def report(self, step: int, loss: float, images_per_second: float, seconds_per_step: float) -> None:
        """Shows the figures of the last interval."""
        text = f"loss {loss:.4f}  {images_per_second:.1f} images/s"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        elif not self.quiet:
            left = int((self.total - step) * seconds_per_step)
            clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
            print(f"step {step}/{self.total}  {text}  {clock} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar:
            self.bar.stop()
