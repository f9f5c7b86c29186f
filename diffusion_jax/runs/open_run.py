"""Opening the checkpoint of a run that trained a diffusion model or a classifier."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from diffusion_jax.errors import UserError
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.parallel.mesh import make_mesh, replicated
from diffusion_jax.runs.folder import RunFolder, read_metadata
from diffusion_jax.runs.kinds import KINDS, Kind
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.runs.system import ClassifierSystem, DiffusionSystem

Params = Literal["ema", "raw"]


class Restored(NamedTuple):
    """A trained network and the parts of its run.

    Attributes:
      system: the parts.
      mesh: the mesh that the weights lie on.
      model: the network with its weights.
      frozen: the frozen networks.
      step: of the checkpoint.
      metadata: what the checkpoint says beside its arrays.
    """

    system: Any
    mesh: Mesh
    model: Any
    frozen: Frozen
    step: int
    metadata: RunMetadata


def restore(
    folder: RunFolder,
    step: str | int = "latest",
    overrides: Sequence[str] = (),
    mesh: Mesh | None = None,
    kind: Kind = KINDS["diffusion"],
    params: Params | None = None,
    place: str = "--workdir",
) -> Restored:
    """Reads the config and the weights of a checkpoint; neither the data nor the training mesh is needed.

    Args:
      folder: the run.
      step: "latest", "best" or a step number.
      overrides: `--config.section.key=value` arguments that change the stored config; its section `mesh`, which was
        that of the training, is left out first.
      mesh: where to put the weights; None takes that of the overrides, by default all devices along "data".
      kind: what the run must have trained, a diffusion model or a classifier.
      params: averaged or raw weights; None takes those that `sample.params` names, for a classifier the average.
      place: the flag or key that named the run, for messages.

    Raises:
      UserError: no such run or checkpoint, a run of another kind, or an override that does not fit.
    """
    with folder.open(step, place) as (checkpoints, chosen):
        metadata = read_metadata(checkpoints, chosen)
        check_kind(metadata, kind, folder, place)
        config = metadata.complete_config(overrides, mesh={})
        system = kind.system(config, metadata.facts)
        assert isinstance(system, DiffusionSystem | ClassifierSystem)
        mesh = mesh or make_mesh(system.mesh_config)
        if params is None:
            params = system.sample.params if isinstance(system, DiffusionSystem) else "ema"
        field = "ema" if params == "ema" else "model"
        model = checkpoints.read(chosen, {field: system.sharded_model(mesh)})[field]
    frozen = jax.device_put(system.load_frozen(), replicated(mesh))
    return Restored(system, mesh, model, frozen, chosen, metadata)


def check_kind(metadata: RunMetadata, kind: Kind, folder: RunFolder, place: str) -> None:
    """Raises a `UserError` unless a run is of a kind."""
    found = metadata.kind
    if found is kind:
        return
    remedy = {
        "first_stage": f"train one with autoencoder.weights={folder}",
        "classifier": "name it as --classifier-workdir",
        "diffusion": "name it as --guide-workdir or --workdir",
    }[found.name]
    raise UserError(f"{place} {folder}: this run trained {found.trains}, not {kind.trains}; {remedy}")
