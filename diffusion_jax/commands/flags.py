"""Flags that several commands share."""

from absl import flags


def define_process_flags(values: flags.FlagValues) -> None:
    """Adds the flags that join the processes of a run."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, or auto on TPU pods, SLURM and GKE.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "The number of this process, from 0.", lower_bound=0, flag_values=values)


def start_process(values: flags.FlagValues) -> None:
    """Joins the other processes as the flags say."""
    from diffusion_jax.parallel import processes

    processes.start(values.coordinator, values.num_processes, values.process_id)
