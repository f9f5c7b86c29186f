"""Accelerators by name, whether they are there or not: `v5e:16x16`, `v5p-128`, `2xv6e-64`, `h200x8`."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, Literal

import jax
from jax.experimental import topologies

from diffusion_jax.errors import UserError, did_you_mean

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
    """What vendors publish of one chip; rates are bytes per second that leave it.

    Attributes:
      platform: "tpu" or "gpu".
      flops: dense bfloat16 FLOP/s.
      hbm: bytes of memory that a program may use.
      hbm_rate: bytes per second between the chip and its memory.
      fast_rate: over all links of the network within a slice or node (ICI, NVLink), one way.
      slow_rate: over the network between slices or nodes (DCN), this chip's share.
      cores: TensorCores, by which v5p slices are named.
      group: chips of the largest group on the fast network.
    """

    platform: Literal["tpu", "gpu"]
    flops: float
    hbm: float
    hbm_rate: float
    fast_rate: float
    slow_rate: float
    cores: int = 1
    group: int = 256


# From Cloud TPU's page of each version and NVIDIA's data sheets, which state the rate of ICI and NVLink in both
# directions together: halved here. The rate between slices is a pod's over its chips, that between nodes of one network
# card for each GPU. The memory of TPUs is what libtpu leaves to programs.
CHIPS = {
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765e9, 600e9, 6.25e9, cores=2, group=6144),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1600e9, 400e9, 12.5e9),
    "a100": Chip("gpu", 312e12, 80e9, 2039e9, 300e9, 25e9, group=8),
    "h100": Chip("gpu", 989e12, 80e9, 3350e9, 450e9, 50e9, group=8),
    "h200": Chip("gpu", 989e12, 141e9, 4800e9, 450e9, 50e9, group=8),
    "b200": Chip("gpu", 2250e12, 180e9, 8000e9, 900e9, 50e9, group=8),
}
"""Chips by the name that begins a topology's."""

EXAMPLES = "write it as v5e:16x16, v5e-256, 2xv5e-256, v5p-128 (counts cores), v6e-64 or h200x8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are joined.

    Attributes:
      name: as the user wrote it.
      kind: a key of `CHIPS`.
      shape: chips along each axis of a slice's torus; for GPUs, those of a node.
      num_slices: slices or nodes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """The figures of one chip."""
        return CHIPS[self.kind]

    @property
    def slice_chips(self) -> int:
        """Chips of one slice or node."""
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        """Chips in all."""
        return self.slice_chips * self.num_slices

    def __str__(self) -> str:
        """The name and what it stands for."""
        shape = "×".join(map(str, self.shape))
        slices = f"{self.num_slices} {'nodes' if self.chip.platform == 'gpu' else 'slices'} of " * (self.num_slices > 1)
        return f"{self.name}: {slices}{self.kind} {shape}, {self.num_chips} chips"


def parse_topology(name: str) -> Topology:
    """Reads the name of a topology.

    Args:
      name: `v5e:4x4` (the torus), `v5e-16` (Cloud TPU's name of the slice; that of v5p counts cores), either with a
        number of slices in front, `2xv5e:4x4`; or `h200x8` (GPUs, in nodes of 8).

    Returns:
      The topology.

    Raises:
      UserError: an unknown chip, or a slice that is not built.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?::(\d+(?:x\d+)+)|-(\d+)|x(\d+))", name)
    if match is None:
        raise UserError(f"--topology {name}: not a topology; {EXAMPLES}")
    slices, kind, torus, cores, gpus = match.groups()
    if kind not in CHIPS:
        raise UserError(f"--topology {name}: no chip '{kind}'{did_you_mean(kind, CHIPS)}; {EXAMPLES}")
    chip = CHIPS[kind]
    if (chip.platform == "gpu") != bool(gpus) or (gpus and slices):
        raise UserError(f"--topology {name}: {kind} is not named like this; {EXAMPLES}")
    if gpus:
        count = int(gpus)
        nodes, rest = divmod(count, chip.group)
        if count == 0 or (nodes and rest):
            raise UserError(f"--topology {name}: use up to {chip.group} GPUs or a multiple of {chip.group}")
        return Topology(name, kind, (min(count, chip.group),), max(nodes, 1))
    shape = tuple(map(int, torus.split("x"))) if torus else _torus(name, int(cores), chip)
    wanted = 3 if kind == "v5p" else 2
    if len(shape) != wanted or 0 in shape or slices == "0" or math.prod(shape) > chip.group:
        raise UserError(
            f"--topology {name}: {kind} slices have {wanted} axes and at most {chip.group} chips; {EXAMPLES}"
        )
    return Topology(name, kind, shape, int(slices or 1))


def _torus(name: str, cores: int, chip: Chip) -> tuple[int, ...]:
    """The torus of a slice that is named by its number of cores: as near to a cube or square as powers of two allow."""
    chips, rest = divmod(cores, chip.cores)
    axes = 3 if chip.cores == 2 else 2
    least = 4 if axes == 3 else 1
    if rest or chips < least or chips & (chips - 1):
        raise UserError(
            f"--topology {name}: {cores} cores are no slice of a standard shape; name the torus, as in v5p:4x4x12"
        )
    if axes == 3 and chips < 64:
        return {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}[chips]
    power = chips.bit_length() - 1
    return tuple(2 ** ((power + axis) // axes) for axis in range(axes))


def absent_devices(topology: Topology) -> list[Any]:
    """The devices of a TPU topology for compiling alone; JAX's own backend becomes the CPU, whatever the machine has.

    Call it before any other use of JAX's devices.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology.name}: compiling for TPUs needs libtpu, which is not installed: "
            "pip install 'diffusion_jax[tpu]'"
        )
    # Read when libtpu is loaded. Nothing is to be asked of a metadata server or written to a log, and since no TPU is
    # touched several processes may compile at once.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5e-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    if topology.num_chips < 4:
        options["chips_per_host_bounds"] = (*topology.shape, 1)[:3]
    shape = "x".join(map(str, topology.shape))
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=f"{topology.kind}:{shape}", **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology {topology.name}: libtpu has no such slice ({str(error).splitlines()[0]})"
        ) from None
    return list(described.devices)
