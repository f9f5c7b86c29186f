"""The one checkpoint format: an Orbax folder per step, with the config, versions and commit that made it."""

import functools
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import Any

import flax
import jax
import optax
import orbax.checkpoint as ocp

import diffusion_jax
from diffusion_jax.errors import UserError
from diffusion_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, under `WORKDIR/checkpoints/STEP`.

    A checkpoint has the items `model`, `ema`, `optimizer` and `step`, which can be read one without the other, and
    `metadata`. Orbax writes it under a temporary name and renames it when it is whole, so a half-written one is never
    found.

    Args:
      workdir: the run's folder.
      keep: number of newest checkpoints to keep; None keeps all.
      keep_every: also keep every checkpoint whose step is a multiple of this; None keeps no others.
      read_only: only read; another process may be writing.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts writing a checkpoint of the state's step and returns once the arrays are copied.

        Args:
          state: the state.
          metadata: anything JSON can hold; `versions()` belongs into it.
        """
        items = {name: ocp.args.StandardSave({"value": value}) for name, value in state._asdict().items()}
        self.manager.save(int(state.step), args=ocp.args.Composite(**items, metadata=ocp.args.JsonSave(metadata)))

    def choose(self, step: str | int) -> int:
        """Turns "latest" or a step number into the step of an existing checkpoint.

        Raises:
          UserError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder.parent}: no whole checkpoint in checkpoints/; train there first")
        if step == "latest":
            return steps[-1]
        if not str(step).isdigit() or int(step) not in steps:
            raise UserError(
                f"step {step}: {self.folder} has no such checkpoint; there are {', '.join(map(str, steps))}"
            )
        return int(step)

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given as metadata."""
        return self.manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]

    def restore(self, step: int, abstract: TrainState, items: Iterable[str] = TrainState._fields) -> TrainState:
        """Reads a checkpoint onto whatever mesh the abstract state names.

        Args:
          step: step of an existing checkpoint.
          abstract: a state of `jax.ShapeDtypeStruct`s with shardings.
          items: the fields to read; the others come back as given.

        Returns:
          The state.

        Raises:
          UserError: the checkpoint holds another model.
        """
        wanted = {name: ocp.args.StandardRestore({"value": getattr(abstract, name)}) for name in items}
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(**wanted))
        except ValueError as error:
            raise UserError(
                f"{self.folder}/{step} does not fit this model: {' '.join(str(error).split())[:300]}"
            ) from error
        return abstract._replace(**{name: restored[name]["value"] for name in wanted})

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finishes pending writes and stops the writing threads."""
        self.manager.close()


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of the software that decides numbers, and the git commit of this package if it runs from a clone."""
    commit = subprocess.run(
        ["git", "-C", pathlib.Path(diffusion_jax.__file__).parent, "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "diffusion_jax": diffusion_jax.__version__,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "orbax": ocp.__version__,
    }
