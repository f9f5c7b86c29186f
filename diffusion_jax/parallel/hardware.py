"""Which accelerators a machine has, told without starting JAX's backends."""

import importlib.util
import pathlib

import jax

# Device files of TPUs (v2 to v4; v5 and later) and of NVIDIA and AMD GPUs.
TPU_FILES = ("accel*", "vfio/[0-9]*")
GPU_FILES = ("nvidia[0-9]*", "kfd")


def ignore_absent_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Lets JAX use the CPU alone where the TPU compiler is installed but no accelerator is.

    JAX would start libtpu, which is there for plans only; it takes seconds to find no TPU, prints what it missed, and
    lets one process at a time do so. A choice of the user's (`JAX_PLATFORMS`) stands.

    Args:
      devices: the folder of device files.
    """
    if jax.config.values["jax_platforms"] or importlib.util.find_spec("libtpu") is None:
        return
    if not any(file for pattern in TPU_FILES + GPU_FILES for file in devices.glob(pattern)):
        jax.config.update("jax_platforms", "cpu")
