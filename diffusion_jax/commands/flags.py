"""Flags that several commands share."""

import math

from absl import flags


class _FiniteParser(flags.FloatParser):
    """Reads a number within bounds; of the words for infinity and NaN, which Python takes for floats, none."""

    def convert(self, argument: float | str) -> float:
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value


def define_float(
    values: flags.FlagValues,
    name: str,
    default: float | None,
    help: str,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
) -> None:
    """Adds a flag for a finite number.

    Args:
      values: where to add it.
      name: its name.
      default: its default, or None.
      help: what it is.
      lower_bound: the smallest value allowed, None for none.
      upper_bound: the largest.
    """
    flags.DEFINE(
        _FiniteParser(lower_bound, upper_bound), name, default, help, values, flags.ArgumentSerializer[float]()
    )


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
