"""The one checkpoint format: an Orbax folder per step, with the config, versions and commit that made it."""

import functools
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import flax
import jax
import optax
import orbax.checkpoint as ocp
from etils import epath

import diffusion_jax
from diffusion_jax.errors import UserError
from diffusion_jax.files import absolute, user_path
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.runs.late_errors import late_errors_dropped

# What TensorStore says of files that are cut short or changed, as against arrays of another model.
DAMAGE = (
    "OSError",
    "FileNotFoundError",
    "DATA_LOSS",
    "CRC",
    "checksum",
    "orrupt",
    "OUT_OF_RANGE",
    "Error reading",
    "Error decoding",
    "Failed to read",
)


class Checkpoints:
    """The checkpoints of one run, under `WORKDIR/checkpoints/STEP`.

    A checkpoint has the fields of `TrainState` as items, which can be read one without the other, and `metadata`. An
    item is a flat mapping from the names of its arrays ("blocks.attn.qkv.kernel") to the arrays. A half-written
    checkpoint is never found: on a disk Orbax writes it under a temporary name and renames it when it is whole, in a
    bucket the last thing that it writes is a mark.

    Args:
      workdir: the run's folder, on a disk or in a bucket.
      keep: number of newest checkpoints to keep; None keeps all.
      folder: name of the folder in `workdir`.
      keep_every: also keep every checkpoint whose step is a multiple of this; None keeps no others.
      read_only: only read; another process may be writing.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        folder: str = "checkpoints",
        keep: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        self.folder = absolute(user_path(workdir)) / folder
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

    def save(self, step: int, items: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        """Starts writing a checkpoint and returns once the arrays are copied; does nothing if the step is there.

        Args:
          step: its step.
          items: trees of arrays by name, such as the fields of a `TrainState`; empty ones are left out.
          metadata: anything JSON can hold; `versions()` belongs into it.
        """
        if step in self.steps():
            return
        trees = {name: ocp.args.StandardSave(_by_name(tree)) for name, tree in items.items() if jax.tree.leaves(tree)}
        self.manager.save(step, args=ocp.args.Composite(**trees, metadata=ocp.args.JsonSave(metadata)))

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def choose(self, step: str | int) -> int:
        """Turns "latest" or a step number into the step of an existing checkpoint.

        Raises:
          UserError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder}: there is no whole checkpoint; train first")
        if step == "latest":
            return steps[-1]
        if not str(step).isdecimal() or int(step) not in steps:
            raise UserError(
                f"step {step}: {self.folder} has no such checkpoint; there are {', '.join(map(str, steps))}"
            )
        return int(step)

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given as metadata."""
        try:
            return self.manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
        except (KeyError, ValueError, OSError) as error:
            raise self._damaged(step, _reason(error)) from error

    def read(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """Reads items of a checkpoint onto whatever mesh the abstract arrays name.

        Args:
          step: step of an existing checkpoint.
          items: name to a tree of `jax.ShapeDtypeStruct`s with shardings; empty trees come back as they are.

        Returns:
          The trees by name.

        Raises:
          UserError: the checkpoint holds another model.
        """
        wanted = {
            name: ocp.args.StandardRestore(_by_name(tree)) for name, tree in items.items() if jax.tree.leaves(tree)
        }
        restored: dict[str, Any] = {}
        with late_errors_dropped() as failed:
            try:
                restored = self.manager.restore(step, args=ocp.args.Composite(**wanted))
            except (OSError, KeyError, ValueError) as error:
                failed.append(_reason(error))
        for reason in failed:
            if any(word in reason for word in DAMAGE):
                raise self._damaged(step, reason)
            raise UserError(f"{self.folder / str(step)} does not fit this model: {reason}")
        return {name: _like(tree, restored[name]) if name in wanted else tree for name, tree in items.items()}

    def _damaged(self, step: int, reason: str) -> UserError:
        """The error for a checkpoint that cannot be read, with the step to take in its place."""
        older = [each for each in self.steps() if each < step]
        way = f"take the older --step or --resume-step {older[-1]}" if older else "there is no older one"
        return UserError(f"{self.folder / str(step)} is damaged ({reason}): {way}")

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finishes pending writes and stops the writing threads."""
        self.manager.close()


def _reason(error: Exception) -> str:
    """What an error says, in a line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name. Orbax cannot read trees back in which NNX modules hold lists of modules."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path).replace("/", "."): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two arrays of one checkpoint item have the same name")
    return named


def _like(tree: Any, named: Mapping[str, Any]) -> Any:
    """The inverse of `_by_name`, for a tree of the wanted structure."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in _by_name(tree)])


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
