"""The folder of a run: the names in it, and reading and writing them whole."""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax.errors import UserError
from diffusion_jax.files import in_bucket, make_folder, user_path, write_atomically
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.metadata import RunMetadata

LOG = "metrics.jsonl"


class RunFolder:
    """The folder of a run, on a disk or in a bucket.

    It holds `config.json`, `metrics.jsonl`, `checkpoints/STEP`, and where the config asks for them `best/STEP`,
    `snapshots/STEP`, `samples/STEP.png`, `evaluations/STEP.json`, `profile` and `tensorboard`.

    Args:
      path: of the folder.

    Raises:
      UserError: a path of an unknown kind.
    """

    def __init__(self, path: epath.PathLike):
        self.path = user_path(path)
        self.log_path = self.path / LOG
        self.profile_path = self.path / "profile"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether there is a run in it."""
        return (self.path / "checkpoints").is_dir()

    @property
    def has_best(self) -> bool:
        """Whether a best checkpoint is kept."""
        return (self.path / "best").is_dir()

    @property
    def has_snapshots(self) -> bool:
        """Whether there are snapshots of averages."""
        return (self.path / "snapshots").is_dir()

    def checkpoints(
        self, keep: int | None = None, keep_every: int | None = None, read_only: bool = False
    ) -> Checkpoints:
        """The checkpoints of its steps; arguments as of `Checkpoints`."""
        return Checkpoints(self.path, keep=keep, keep_every=keep_every, read_only=read_only)

    def best(self, read_only: bool = False) -> Checkpoints:
        """The best checkpoint by `evaluate.best`."""
        return Checkpoints(self.path, folder="best", keep=1, read_only=read_only)

    def snapshots(self, read_only: bool = False) -> Checkpoints:
        """The snapshots of averages, from which others are made after the run."""
        return Checkpoints(self.path, folder="snapshots", read_only=read_only)

    @contextlib.contextmanager
    def open(self, step: str | int = "latest", place: str = "--workdir") -> Iterator[tuple[Checkpoints, int]]:
        """The checkpoints that a step names, and the step as a number.

        Args:
          step: "latest", "best" (by `evaluate.best`), or a step number.
          place: the flag or key that named the run, for messages.

        Raises:
          UserError: no such run or checkpoint.
        """
        if not self.is_run:
            raise UserError(f"{place} {self}: there is no run (no checkpoints folder in it)")
        best = step == "best"
        if best and not self.has_best:
            raise UserError(f"--step best: {self} has none; train with train.eval_every and evaluate.best set")
        checkpoints = self.best(read_only=True) if best else self.checkpoints(read_only=True)
        try:
            yield checkpoints, checkpoints.choose("latest" if best else step)
        finally:
            checkpoints.close()

    def metadata(self, step: str | int = "latest", place: str = "--workdir") -> RunMetadata:
        """What a checkpoint says beside its arrays; arguments and errors as of `open`."""
        with self.open(step, place) as (checkpoints, chosen):
            return read_metadata(checkpoints, chosen)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the folder, on a disk; the lock of a dead process is gone with it.

        Raises:
          UserError: another process is at work there.
        """
        make_folder(self.path)
        if in_bucket(self.path):  # where nothing can be locked
            yield
            return
        with open(self.path / "lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self}: another `train` is at work there ({file.read().strip()}): wait for it, or use another "
                    "--workdir"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def write_config(self, config: ml_collections.ConfigDict) -> None:
        """Writes `config.json`."""
        make_folder(self.path)
        write_atomically(self.path / "config.json", (config_lib.to_json(config) + "\n").encode())

    def picture_path(self, step: int) -> epath.Path:
        """The picture drawn at a step."""
        return self.path / "samples" / f"{step:08}.png"

    def last_picture(self) -> bytes | None:
        """The newest picture as a PNG; None if none has been drawn."""
        folder = self.path / "samples"
        if not folder.is_dir():
            return None
        steps = sorted(path for path in folder.iterdir() if path.stem.isdecimal() and path.suffix == ".png")
        return steps[-1].read_bytes() if steps else None

    def write_evaluation(self, step: int, result: dict[str, Any]) -> None:
        """Writes the result of an evaluation at a step."""
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / "evaluations" / f"{step:08}.json", text.encode())

    def log(self) -> dict[str, np.ndarray]:
        """The log by column, float64, NaN in the lines that lack one; empty if nothing has been logged."""
        if not self.log_path.exists():
            return {}
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        names = dict.fromkeys(name for line in lines for name in line)
        return {name: np.array([line.get(name, np.nan) for line in lines], np.float64) for name in names}


def read_metadata(checkpoints: Checkpoints, step: int) -> RunMetadata:
    """What the checkpoint of a step says beside its arrays."""
    return RunMetadata.from_json(checkpoints.metadata(step), f"{checkpoints.folder / str(step)}")
