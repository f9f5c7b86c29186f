"""Starting one process of many, and what the processes agree on."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run; call it before any other use of JAX.

    Args:
      coordinator: "host:port" of process 0, or "auto" to ask the cluster (Cloud TPU, SLURM, GKE, MPI); None runs alone.
      num_processes: number of processes; not needed with "auto".
      process_id: 0 ≤ process_id < num_processes; not needed with "auto".

    Raises:
      UserError: some of the three are missing, or "auto" finds no cluster.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise UserError("--num-processes and --process-id need --coordinator host:port (or auto on a cluster)")
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"--coordinator auto: this is no process of a SLURM, MPI, Cloud TPU or GKE job ({error}): give "
                "--coordinator HOST:PORT --num-processes N --process-id I, or leave them out to run alone"
            ) from None
        return
    if num_processes is None or process_id is None:
        raise UserError(f"--coordinator {coordinator} needs --num-processes and --process-id (or --coordinator auto)")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def is_main() -> bool:
    """Whether this process prints and writes for all."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call it at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(place: str) -> None:
    """Returns when every process has called it; `place` is the name of the place in the program."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)
