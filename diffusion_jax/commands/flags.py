"""Flags that several commands share."""

import math
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from diffusion_jax.evaluation.settings import ImageSettings

IMAGE_FLAGS = ("crop", "exif_orientation", "channels", "data_dir")


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


def define_image_flags(values: flags.FlagValues) -> None:
    """Adds the flags that say how photographs become images, as the section `data` of a config does."""
    flags.DEFINE_enum("crop", None, ["adm", "celeba"], "data.crop of the model, adm unless told.", flag_values=values)
    flags.DEFINE_bool("exif_orientation", None, "data.exif_orientation, true unless told.", flag_values=values)
    flags.DEFINE_enum("channels", None, ["1", "3"], "data.channels, 3 unless told; 1 is grey.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "data.data_dir: where TFDS keeps data sets.", flag_values=values)


def image_settings(values: flags.FlagValues, known: "ImageSettings | None" = None) -> "ImageSettings | None":
    """What the image flags say, of samples whose settings are `known`; None where neither says anything.

    Raises:
      UserError: a flag contradicts what is known.
    """
    import dataclasses

    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation.settings import ImageSettings

    said: dict[str, Any] = {name: values[name].value for name in IMAGE_FLAGS if values[name].value is not None}
    if "channels" in said:
        said["channels"] = int(said["channels"])
    if not said:
        return known
    settings = dataclasses.replace(known or ImageSettings(), **said)
    differing = settings.differences(known) if known else []
    if differing:
        raise UserError(
            f"the samples are of a model trained on other images ({'; '.join(differing)}): leave the flag out, since "
            "the reference is read as the model's images were"
        )
    return settings


def start_process(values: flags.FlagValues) -> None:
    """Joins the other processes as the flags say."""
    from diffusion_jax.parallel import processes

    processes.start(values.coordinator, values.num_processes, values.process_id)
