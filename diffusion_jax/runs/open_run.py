"""Opening the checkpoint of a run in order to sample from it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from diffusion_jax import config as config_lib
from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.parallel.mesh import make_mesh, replicated
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.training.diffusion_state import abstract_state
from diffusion_jax.runs.system import (SCHEMA, System)
from diffusion_jax.data.facts import DatasetFacts

BEST = "best"
"""The folder of a run that holds its best checkpoint."""


@contextlib.contextmanager
def open_checkpoints(workdir: epath.PathLike, step: str) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run that a step names, and the step as a number.

    Args:
      workdir: the run's folder.
      step: "latest", "best" (by `evaluate.best`), or a step number.

    Raises:
      UserError: no such run or checkpoint.
    """
    folder = user_path(workdir)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--workdir {workdir}: there is no run (no checkpoints folder in it)")
    best = step == "best"
    if best and not (folder / BEST).is_dir():
        raise UserError(f"--step best: {workdir} has none; train with train.eval_every and evaluate.best set")
    checkpoints = Checkpoints(workdir, folder=BEST if best else "checkpoints", read_only=True)
    try:
        yield checkpoints, checkpoints.choose("latest" if best else step)
    finally:
        checkpoints.close()


def restore_for_sampling(
    workdir: epath.PathLike, step: str = "latest", overrides: Sequence[str] = (), mesh: Mesh | None = None
) -> tuple[System, Mesh, Any, Any]:
    """Reads the config and the weights of a checkpoint; neither the data nor the training mesh is needed.

    Args:
      workdir: the run's folder.
      step: "latest", "best" or a step number.
      overrides: `--config.section.key=value` arguments that change the stored config; its section `mesh`, which was
        that of the training, is left out first.
      mesh: where to put the weights; None takes that of the overrides, by default all devices along "data".

    Returns:
      The system, the mesh, the backbone with the weights that `sample.params` names, and the first stage.

    Raises:
      UserError: no such run or checkpoint, or an override that does not fit.
    """
    with open_checkpoints(workdir, step) as (checkpoints, chosen):
        stored = checkpoints.metadata(chosen)
        if "discriminator" in stored["config"]:
            raise UserError(
                f"--workdir {workdir}: this run trained a first stage, not a diffusion model; train one with "
                f"autoencoder.weights={workdir}"
            )
        config = config_lib.override(stored["config"] | {"mesh": {}}, overrides, SCHEMA)
        system = System(config, DatasetFacts.from_json(stored["data"]))
        mesh = mesh or make_mesh(system.build("mesh"))
        optimizer, _ = system.build("optimizer")
        abstract = abstract_state(system, optimizer, mesh)
        field = "ema" if system.sample.params == "ema" else "model"
        model = checkpoints.read(chosen, {field: abstract.model})[field]
    first_stage = jax.device_put(system.load_first_stage(), replicated(mesh))
    return system, mesh, model, first_stage
