"""Post-hoc EMA on disk: from a run's snapshots to a run folder with an average of another width."""

from typing import Any

import jax
from etils import epath

from diffusion_jax import config as config_lib
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.optim.ema_profiles import PowerEMA, Snapshot, posthoc_average, posthoc_weights
from diffusion_jax.training.diffusion_state import abstract_state
from diffusion_jax.runs.system import (SCHEMA, System)
from diffusion_jax.data.facts import DatasetFacts


def reconstruct(workdir: epath.Path, out: epath.Path, sigma_rel: float, step: str) -> None:
    """Combines the snapshots of a run up to a step into one average (Karras et al. 2024, algorithm 3).

    Args:
      workdir: the run.
      out: the run folder to make; its checkpoint has the one item `ema`.
      sigma_rel: relative width of the average.
      step: "latest" or the step of a snapshot.

    Raises:
      UserError: no snapshots, no such step, a width without a profile, or `out` already holds checkpoints.
    """
    PowerEMA(sigma_rel=sigma_rel)
    if not (workdir / "snapshots").is_dir():
        raise UserError(
            f"{workdir}: no snapshots; train with --config.train.ema_widths and --config.train.snapshot_every"
        )
    snapshots = Checkpoints(workdir, folder="snapshots", read_only=True)
    chosen = snapshots.choose(step)
    metadata = snapshots.metadata(chosen)
    config = config_lib.complete(metadata["config"], SCHEMA)
    system = System(config, DatasetFacts.from_json(metadata["data"]))
    optimizer, _ = system.build("optimizer")
    abstract = abstract_state(system, optimizer, make_mesh(MeshConfig(), jax.local_devices()[:1]))

    widths = system.train.ema_widths
    stored = [Snapshot(time, width) for time in snapshots.steps() if time <= chosen for width in widths]
    weights = posthoc_weights(stored, Snapshot(chosen, sigma_rel))

    def load(i: int) -> Any:
        return snapshots.read(int(stored[i].time), {str(stored[i].sigma_rel): abstract.model})[str(stored[i].sigma_rel)]

    average = posthoc_average(weights, load)
    checkpoints = Checkpoints(out)
    if checkpoints.steps():
        raise UserError(f"--out {out}: checkpoints are already there; use another folder")
    provenance = {"workdir": str(workdir), "sigma_rel": sigma_rel, "snapshots": len(stored)}
    checkpoints.save(chosen, {"ema": average}, {**metadata, "posthoc_ema": provenance})
    checkpoints.close()
