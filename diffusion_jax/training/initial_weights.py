"""Beginning a run from the weights of another: same architecture, other classes or another resolution."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.runs.folder import RunFolder, read_metadata
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.training.stage import Stage
from diffusion_jax.training.stages import STAGES

# How the names of tables with a row for each class end, and those of learned positions.
CLASS_TABLE = "table.embedding"
POSITIONS = "positions"


class InitialWeights(NamedTuple):
    """Weights to begin with.

    Attributes:
      model: the tree of arrays, on the shards of the run.
      facts: what was taken from where, for the metadata; anything JSON can hold.
    """

    model: Any
    facts: dict[str, Any]

    def summary(self) -> str:
        """What was taken, in one line for a person."""
        facts = self.facts
        parts = [f"{facts['parameters']:,} parameters ({facts['params']}) of {facts['run']}, step {facts['step']}"]
        if facts["classes"] is not None:
            parts.append(f"{facts['classes']['kept']} classes by name, {facts['classes']['new']} new")
        if facts["positions"]:
            parts.append(f"positions interpolated: {', '.join(facts['positions'])}")
        return "; ".join(parts)


def parse_run(text: str) -> tuple[str, str]:
    """Parts "RUN[:STEP]" into the folder of a run and the step, by default "latest"."""
    path, colon, step = text.rpartition(":")
    return (path, step) if colon and (step.isdecimal() or step in ("latest", "best")) else (text, "latest")


def initial_weights(text: str, kind: str, stage: Stage, config: Mapping[str, Any], new: Any) -> InitialWeights:
    """Reads the averaged weights of another run as the first weights of this one.

    A table with a row for each class takes the rows of classes of the same name, and the rest from `new`; learned
    positions are interpolated to the grid of this run.

    Args:
      text: "RUN[:STEP]", STEP a number, "latest" or "best".
      kind: the kind of this run.
      stage: this run.
      config: its config, whose section `mesh` also places the weights that are read.
      new: the model at initialisation, on its shards.

    Raises:
      UserError: no such run, one of another kind, or another architecture.
    """
    path, step = parse_run(text)
    folder = RunFolder(path)
    with folder.open(step, "--init-from") as (checkpoints, chosen):
        metadata = read_metadata(checkpoints, chosen)
        if metadata.kind.name != kind:
            raise UserError(f"--init-from {text}: that run trained {metadata.kind.trains}; name one of the same kind")
        theirs = STAGES[kind](metadata.complete_config(mesh=dict(config["mesh"])), metadata.facts).abstract_state()
        stored = checkpoints.read(chosen, {"ema": theirs.model})["ema"]
    old, wanted = _named(stored), _named(new)
    mapped = _Mapped(text, metadata, stage.facts)
    taken = {name: mapped.array(name, old, leaf) for name, leaf in wanted.items()}
    leftover = [name for name in old if name not in wanted]
    if leftover:
        raise UserError(
            f"--init-from {text}: that run has '{leftover[0]}' and {len(leftover) - 1} more arrays that this model has "
            "not: set the section model to that run's"
        )
    model = jax.tree.unflatten(jax.tree.structure(new), list(taken.values()))
    facts = {
        "run": str(folder),
        "step": chosen,
        "params": "ema",
        "parameters": sum(leaf.size for leaf in old.values()),
        "classes": mapped.classes,
        "positions": mapped.positions,
    }
    return InitialWeights(model, facts)


class _Mapped:
    """The arrays of one model as those of another that differs in classes and resolution alone."""

    def __init__(self, text: str, metadata: RunMetadata, facts: DatasetFacts):
        self.text, self.old_classes, self.new_classes = text, metadata.facts.class_names, facts.class_names
        self.classes: dict[str, int] | None = None
        self.positions: list[str] = []

    def array(self, name: str, old: Mapping[str, jax.Array], new: jax.Array) -> jax.Array:
        """The array `name` of the new model, from the old arrays by name and from its initial value."""
        if name not in old:
            raise UserError(
                f"--init-from {self.text}: that run has no array '{name}': set the section model to that run's"
            )
        value = old[name]
        if _is_class_table(name, value, self.old_classes) and _is_class_table(name, new, self.new_classes):
            found: Any = self._rows(value, new)
        elif value.shape == new.shape:
            return value
        elif name.split(".")[-1] == POSITIONS and value.ndim == 2 and value.shape[1:] == new.shape[1:]:
            found = self._interpolated(name, value, new)
        else:
            raise UserError(
                f"--init-from {self.text}: '{name}' is {value.shape} there and {new.shape} here: set the section model "
                "to that run's"
            )
        return jax.device_put(found, new.sharding)

    def _rows(self, value: jax.Array, new: jax.Array) -> np.ndarray:
        """The table with the rows of classes of the same name; the null class, if both have one, is the last."""
        rows, table = np.asarray(value), np.array(new)
        number = {name: i for i, name in enumerate(self.old_classes)}
        kept = [(i, number[name]) for i, name in enumerate(self.new_classes) if name in number]
        for ours, theirs in kept:
            table[ours] = rows[theirs]
        if len(rows) > len(self.old_classes) and len(table) > len(self.new_classes):
            table[-1] = rows[-1]
        self.classes = {"kept": len(kept), "new": len(self.new_classes) - len(kept)}
        return table

    def _interpolated(self, name: str, value: jax.Array, new: jax.Array) -> jax.Array:
        """Positions [E + h w, D] at another h and w, bicubically; the first E, of tokens that are no patches, stay."""
        extras = _extra_tokens(len(value), len(new))
        if extras is None:
            raise UserError(
                f"--init-from {self.text}: '{name}' has {len(value)} positions there and {len(new)} here, which are no "
                "two square grids behind the same number of further tokens"
            )
        self.positions.append(name)
        sides = [math.isqrt(len(each) - extras) for each in (value, new)]
        grid = jnp.reshape(value[extras:], (sides[0], sides[0], -1))  # [h, w, D]
        resized = jax.image.resize(grid, (sides[1], sides[1], grid.shape[-1]), "bicubic")
        return jnp.concatenate([value[:extras], resized.reshape(sides[1] ** 2, -1)])


def _named(tree: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path).replace("/", "."): leaf for path, leaf in leaves}


def _is_class_table(name: str, array: jax.Array, classes: tuple[str, ...]) -> bool:
    return name.endswith(CLASS_TABLE) and array.ndim == 2 and array.shape[0] in (len(classes), len(classes) + 1)


def _extra_tokens(old: int, new: int) -> int | None:
    """The number of tokens before two square grids of patches in sequences of these lengths; None if there is none."""
    for extras in range(min(old, new)):
        if all(math.isqrt(length - extras) ** 2 == length - extras for length in (old, new)):
            return extras
    return None
