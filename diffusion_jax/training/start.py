"""How a run begins: anew, with the weights of another run, or where it was left."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from diffusion_jax import config as config_lib
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.parallel import processes
from diffusion_jax.runs.checkpoints import Checkpoints, versions
from diffusion_jax.runs.folder import RunFolder, read_metadata
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.training.initial_weights import initial_weights
from diffusion_jax.training.stage import Stage
from diffusion_jax.training.stages import STAGES


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """What a user asks for where a run begins.

    Attributes:
      init_from: "RUN[:STEP]" whose weights a new run begins with; None draws them.
      allow_changes: let a run go on with another learning rate, schedule, clipping or decay; the change is kept in the
        metadata with its step.
      resume_step: the checkpoint to go on from; newer ones are deleted. None takes the newest.
    """

    init_from: str | None = None
    allow_changes: bool = False
    resume_step: str | None = None


# A share of initial weights in an average that leaves its samples noise.
MOSTLY_INITIAL = 0.1

# Entries of a run's metadata that stay with it through restarts.
KEPT = ("init_from", "changed")


def start(
    config: ml_collections.ConfigDict,
    stage: Stage,
    abstract: Any,
    folder: RunFolder,
    checkpoints: Checkpoints,
    how: StartOptions,
) -> tuple[Any, int, RunMetadata]:
    """The state that a run goes on from.

    Args:
      config: its complete config.
      stage: the run.
      abstract: `stage.abstract_state()`.
      folder: its folder.
      checkpoints: those in the folder.
      how: what the user allows and asks for.

    Returns:
      The state on its shards, its step, and what checkpoints are to say of the run.

    Raises:
      UserError: the run in the folder is another one, or `init_from` does not fit.
    """
    metadata = RunMetadata(config.to_dict(), stage.facts, versions())
    init_from = how.init_from
    if checkpoints.steps():
        step = checkpoints.choose("latest" if how.resume_step is None else how.resume_step)
        stored = read_metadata(checkpoints, step)
        changes = check_same_run(config, stored, folder, how.allow_changes)
        check_same_data(stage.facts, stored.facts, folder, "label" in kind_of(config).system.reads(config))
        metadata = metadata.with_more(**{key: stored.more[key] for key in KEPT if key in stored.more})
        if changes:
            noted = [{"step": step, "key": key, "before": old, "now": new} for key, old, new in changes]
            metadata = metadata.with_more(changed=[*metadata.more.get("changed", []), *noted])
        before = _before(config, stored, stage, abstract) if changes else abstract
        read = checkpoints.read(step, before._asdict())
        # Another schedule or clipping arranges the same arrays of the optimizer in another tree.
        state = jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(type(abstract)(**read)))
        checkpoints.delete_after(step)
        return state, step, metadata
    if how.resume_step is not None:
        raise UserError(f"--resume-step {how.resume_step}: {folder} holds no checkpoint to resume from")
    state = stage.new_state(abstract)
    if init_from is None:
        return state, 0, metadata
    weights = initial_weights(init_from, kind_of(config).name, stage, config, state.model)
    if processes.is_main():
        print(f"initial weights: {weights.summary()}", file=sys.stderr)
    return with_weights(state, weights.model), 0, metadata.with_more(init_from=weights.facts)


def with_weights(state: Any, model: Any) -> Any:
    """A state before its first step with other weights, from which its averages begin too."""

    def copy() -> Any:
        return jax.tree.map(jnp.copy, model)

    averages = {"tracks": tuple(copy() for _ in state.tracks)} if hasattr(state, "tracks") else {}
    return state._replace(model=model, ema=copy(), **averages)


def _before(config: ml_collections.ConfigDict, stored: RunMetadata, stage: Stage, abstract: Any) -> Any:
    """The abstract state of the run before its keys were changed, on the mesh of now."""
    sections = stored.complete_config(mesh=dict(config.mesh))
    former = STAGES[stored.kind.name](sections, stage.facts).abstract_state()
    if len(jax.tree.leaves(former)) != len(jax.tree.leaves(abstract)):
        raise UserError("--allow-changes: the optimizer keeps other arrays under the new keys: use --init-from")
    return former


def check_same_run(
    config: ml_collections.ConfigDict, stored: RunMetadata, folder: RunFolder, allow_changes: bool = False
) -> list[tuple[str, Any, Any]]:
    """Refuses to continue a run under a config that would have given other numbers.

    Args:
      config: the config to go on with.
      stored: what the newest checkpoint says.
      folder: of the run.
      allow_changes: let the keys that a section calls changeable differ.

    Returns:
      The keys that differ and may, each with the value before and now.

    Raises:
      UserError: names the first key that differs and may not.
    """
    changes: list[tuple[str, Any, Any]] = []
    kind = kind_of(config)
    if stored.kind is not kind:
        raise UserError(
            f"{folder} holds a run that trains {stored.kind.trains}, not {kind.trains}: use another --workdir"
        )
    for key, (before, now) in config_lib.differences(stored.complete_config(), config).items():
        name, _, option = key.partition(".")
        section = kind.schema[name]
        changeable = option in section.changeable and stored.config[name].get("name") == config[name].get("name")
        if changeable and allow_changes:
            changes.append((key, before, now))
        elif section.decides(option):
            way = ", add --allow-changes to go on with the new value" if changeable else ""
            raise UserError(
                f"{folder} holds a run with {key}={before!r}, not {now!r}: set it back to resume{way}, or use another "
                f"--workdir with --init-from {folder}"
            )
    return changes


def check_same_data(now: DatasetFacts, before: DatasetFacts, folder: RunFolder, labelled: bool) -> None:
    """Refuses to continue a run on data whose classes have other names, and warns of other images.

    Args:
      now: the facts of the data that the run is to go on with.
      before: those it was trained on.
      folder: its folder.
      labelled: whether the run reads labels.

    Raises:
      UserError: other class names, or latents of another autoencoder.
    """
    if labelled and now.class_names != before.class_names:
        raise UserError(
            f"{folder}: the run has the classes {_few(before.class_names)}; the data {_few(now.class_names)}: restore "
            f"the data to resume, or use another --workdir and --init-from {folder}"
        )
    if None not in (now.encoder, before.encoder) and now.encoder != before.encoder:
        raise UserError(
            f"{folder}: the run was trained on latents of autoencoder {before.encoder}, and the cache holds those of "
            f"{now.encoder}: encode with the former to resume, or use another --workdir"
        )
    if now.identity != before.identity and processes.is_main():
        print(
            f"warning: the data are not those that {folder} was trained on: they were '{before.identity}' and are "
            f"'{now.identity}'",
            file=sys.stderr,
        )


def _few(names: tuple[str, ...]) -> str:
    """The first names, and how many there are if those are not all."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown}, … ({len(names)})"


def doubts(config: ml_collections.ConfigDict) -> list[str]:
    """What a complete config asks for and hardly means, a line each."""
    found = []
    steps, optimizer, ema = config.train.steps, config.optimizer, config.ema
    end = optimizer.get("decay_steps")
    if optimizer.get("schedule") in ("cosine", "linear") and end is not None and end < steps:
        found.append(
            f"optimizer.decay_steps={end} ends before train.steps={steps}: the learning rate is 0 for the last "
            f"{steps - end} steps"
        )
    decay = ema.get("max_decay")
    if ema.get("name") == "constant" and decay is not None and decay**steps > MOSTLY_INITIAL:
        found.append(
            f"ema.max_decay={decay} over train.steps={steps}: {100 * decay**steps:.1f} % of the averaged weights are "
            "the initial ones; lower it, or sample with sample.params=raw"
        )
    return found
