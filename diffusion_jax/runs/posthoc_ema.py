"""Post-hoc EMA on disk: from a run's snapshots to a run folder with an average of another width."""

from typing import Any

import jax
from etils import epath

from diffusion_jax.errors import UserError
from diffusion_jax.optim.ema_profiles import PowerEMA
from diffusion_jax.optim.posthoc import Fit, Snapshot, check_fit, posthoc_average, posthoc_fit, posthoc_weights
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.folder import RunFolder, read_metadata
from diffusion_jax.runs.system import System


def reconstruct(workdir: epath.PathLike, out: epath.PathLike, sigma_rel: float, step: str) -> Fit:
    """Combines the snapshots of a run up to a step into one average (Karras et al. 2024, algorithm 3).

    Args:
      workdir: the run.
      out: the run folder to make; its checkpoint has the one item `ema`.
      sigma_rel: relative width of the average.
      step: "latest" or the step of a snapshot.

    Returns:
      The width of the average that was written, and how far its profile is from the one asked for.

    Raises:
      UserError: no snapshots, no such step, a width without a profile or too far from what the snapshots can give, or
        `out` already holds checkpoints.
    """
    PowerEMA(sigma_rel=sigma_rel)
    folder = RunFolder(workdir)
    if not folder.has_snapshots:
        raise UserError(
            f"{folder}: no snapshots; train with --config.train.ema_widths and --config.train.snapshot_every"
        )
    snapshots = folder.snapshots(read_only=True)
    chosen = snapshots.choose(step)
    metadata = read_metadata(snapshots, chosen)
    system = metadata.kind.system(metadata.complete_config(), metadata.facts)
    assert isinstance(system, System), "a first stage has no snapshots"
    model = system.sharded_model(make_mesh(MeshConfig(), jax.local_devices()[:1]))

    widths = system.train.ema_widths
    stored = [Snapshot(time, width) for time in snapshots.steps() if time <= chosen for width in widths]
    target = Snapshot(chosen, sigma_rel)
    weights = posthoc_weights(stored, target)
    fit = posthoc_fit(stored, weights, target)
    check_fit(fit, target)

    def load(i: int) -> Any:
        return snapshots.read(int(stored[i].time), {str(stored[i].sigma_rel): model})[str(stored[i].sigma_rel)]

    average = posthoc_average(weights, load)
    checkpoints = RunFolder(out).checkpoints()
    if checkpoints.steps():
        raise UserError(f"--out {out}: checkpoints are already there; use another folder")
    provenance = {"workdir": str(folder), "sigma_rel": sigma_rel, "snapshots": len(stored), "misfit": fit.misfit}
    checkpoints.save(chosen, {"ema": average}, metadata.with_more(posthoc_ema=provenance).to_json())
    checkpoints.close()
    return fit
