"""What a machine without accelerators wants of JAX and of the C library, told without starting JAX's backends."""

import ctypes
import importlib.util
import os
import pathlib
import platform

import jax

# Device files of TPUs (v2 to v4; v5 and later) and of NVIDIA and AMD GPUs.
ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")
# Parameters of glibc's mallopt, malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def usable_cores() -> int:
    """The number of processor cores that this process may use, ≥ 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_cpu(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Prepares a program that runs on CPUs alone, before it uses JAX; does nothing where there is an accelerator.

    Where libtpu is installed, which is there for plans only, JAX would start it: it takes seconds to find no TPU,
    prints what it missed, and lets one process at a time do so. A choice of the user's (`JAX_PLATFORMS`) stands.

    Args:
      devices: the folder of device files.
    """
    platforms = jax.config.values["jax_platforms"]
    absent = not any(file for pattern in ACCELERATORS for file in devices.glob(pattern))
    if absent and not platforms and importlib.util.find_spec("libtpu"):
        jax.config.update("jax_platforms", "cpu")
    if platforms == "cpu" or (absent and not platforms):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets the process use memory again that it has freed instead of returning it to the system; with glibc only.

    By default each large array is new memory, which the system clears page by page at first touch: a fifth of the time
    of a training step of DiT-S/2, which allocates its temporaries anew. All threads share one heap for that, since XLA
    allocates on threads of its own.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # No threshold at all, -1: the largest one there is, 2 GiB, is less than many a training step frees.
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
