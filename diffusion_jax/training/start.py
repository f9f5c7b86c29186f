"""How a run begins: anew, with the weights of another run, or where it was left."""

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

# Entries of a run's metadata that stay with it through restarts.
KEPT = ("init_from",)


def start(
    config: ml_collections.ConfigDict,
    stage: Stage,
    abstract: Any,
    folder: RunFolder,
    checkpoints: Checkpoints,
    init_from: str | None,
) -> tuple[Any, int, RunMetadata]:
    """The state that a run goes on from.

    Args:
      config: its complete config.
      stage: the run.
      abstract: `stage.abstract_state()`.
      folder: its folder.
      checkpoints: those in the folder.
      init_from: "RUN[:STEP]" whose weights a new run begins with; None draws them.

    Returns:
      The state on its shards, its step, and what checkpoints are to say of the run.

    Raises:
      UserError: the run in the folder is another one, or `init_from` does not fit.
    """
    metadata = RunMetadata(config.to_dict(), stage.facts, versions())
    if checkpoints.steps():
        step = checkpoints.choose("latest")
        stored = read_metadata(checkpoints, step)
        check_same_run(config, stored, folder)
        check_same_data(stage.facts, stored.facts, folder, "label" in kind_of(config).system.reads(config))
        metadata = metadata.with_more(**{key: stored.more[key] for key in KEPT if key in stored.more})
        return type(abstract)(**checkpoints.read(step, abstract._asdict())), step, metadata
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


def check_same_run(config: ml_collections.ConfigDict, stored: RunMetadata, folder: RunFolder) -> None:
    """Refuses to continue a run under a config that would have given other numbers.

    Raises:
      UserError: names the first key that differs.
    """
    kind = kind_of(config)
    if stored.kind is not kind:
        raise UserError(
            f"{folder} holds a run that trains {stored.kind.trains}, not {kind.trains}: use another --workdir"
        )
    for key, (before, now) in config_lib.differences(stored.complete_config(), config).items():
        section, _, name = key.partition(".")
        if kind.schema[section].decides(name):
            raise UserError(
                f"{folder} holds a run with {key}={before!r}, not {now!r}: set it back to resume, or use another "
                f"--workdir and --init-from {folder}"
            )


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
