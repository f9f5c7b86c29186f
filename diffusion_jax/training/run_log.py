"""What a run tells about itself: a progress line, `metrics.jsonl`, and TensorBoard where TensorFlow is installed."""

import concurrent.futures
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from rich import progress

from diffusion_jax.files import in_bucket, write_atomically
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.runs.folder import LOG

# In a bucket the log is written again whole: at the next report after so many seconds, and seldom enough that it takes
# no more than this share of the time.
SECONDS_BETWEEN_UPLOADS = 5.0
SHARE_OF_UPLOADS = 0.05


class Writer(Protocol):
    """Where scalars go: what is used of clu's `MetricWriter`, which cannot be imported without TensorFlow."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricWriter:
    """Writes scalars per step to `WORKDIR/metrics.jsonl` and, with the extra [tf], to TensorBoard.

    Args:
      workdir: the run's folder, which exists, on a disk or in a bucket.
      resume_step: lines of later steps are dropped, since the run will write them again.

    Attributes:
      last: the newest line that was kept; None if there is none.
    """

    def __init__(self, workdir: epath.Path, resume_step: int):
        path = workdir / LOG
        lines: list[str] = []
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if _step(line) <= resume_step]
            write_atomically(path, "".join(lines).encode())
        self.last: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
        self.writer: Writer = UploadedLines(path, lines) if in_bucket(path) else AppendedLines(path)
        if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
            from clu import metric_writers

            board = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir / "tensorboard")))
            self.writer = metric_writers.MultiWriter([self.writer, board])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line: the step, the time in seconds since 1970, and the scalars."""
        self.writer.write_scalars(step, scalars)

    def flush(self) -> None:
        """Returns when all lines are where a process that takes over this run finds them."""
        self.writer.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.writer.close()


class AppendedLines:
    """JSON lines that are appended to a file on a disk, as they come."""

    def __init__(self, path: epath.Path):
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self.file.write(_line(step, scalars))

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class UploadedLines:
    """JSON lines in a bucket, where nothing can be appended: the file is written again whole, beside the training.

    An upload begins with a line that comes long enough after the one before, and takes all lines that there are. One
    that fails is reported and made up for by the next.

    Args:
      path: the file.
      lines: what it holds.
    """

    def __init__(self, path: epath.Path, lines: Sequence[str]):
        self.path, self.lines = path, list(lines)
        self.uploaded = len(self.lines)
        self.next = 0.0
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self.upload: concurrent.futures.Future[None] | None = None

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self.lines.append(_line(step, scalars))
        if time.monotonic() >= self.next and (self.upload is None or self.upload.done()):
            self.upload = self.thread.submit(self._upload, len(self.lines))

    def flush(self) -> None:
        if self.upload is not None:
            self.upload.result()
        if self.uploaded < len(self.lines):
            self._upload(len(self.lines))

    def close(self) -> None:
        self.flush()
        self.thread.shutdown()

    def _upload(self, count: int) -> None:
        start = time.monotonic()
        try:
            write_atomically(self.path, "".join(self.lines[:count]).encode())
            self.uploaded = count
        except OSError as error:
            logging.warning("%s: cannot be written (%s); the next report tries again", self.path, error.strerror)
        end = time.monotonic()
        self.next = end + max(SECONDS_BETWEEN_UPLOADS, (end - start) / SHARE_OF_UPLOADS)


def _line(step: int, scalars: Mapping[str, Any]) -> str:
    return json.dumps({"step": step, "time": round(time.time(), 3), **scalars}) + "\n"


def write_parameter_table(workdir: epath.Path, model: Any) -> None:
    """Writes `WORKDIR/parameters.txt`: the name, shape, dtype and size of each parameter of a model, and their sum.

    Args:
      workdir: the run's folder.
      model: concrete or abstract.
    """
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    table = parameter_overview.get_parameter_overview(named, include_stats=False)
    write_atomically(workdir / "parameters.txt", f"{table}\n".encode())


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
