"""The device mesh and how a batch lies on it."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """The `mesh` section: how many devices each axis has; one of them may be −1, which means the rest.

    Attributes:
      data: copies of the model, each with its part of the batch.
      fsdp: parts a copy's parameters, gradients, optimizer state and EMA are split into, each also with its part of
        the batch.
      tensor: parts each matrix product is split into.
      attention: the kernel of attentions: "cudnn" (NVIDIA), "pallas" (TPU) or "xla"; "auto" takes the platform's own.
        Where a kernel does not take a shape or dtype, XLA's is used.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    attention: Literal["auto", "cudnn", "pallas", "xla"] = "auto"


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges devices along the axes (data, fsdp, tensor).

    Args:
      config: sizes of the axes.
      devices: the devices to use; None means all devices of all processes.

    Returns:
      A mesh with axes "data", "fsdp", "tensor".

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    given = f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{given}: sizes are positive, and at most one is -1 (the rest of the devices)")
    if -1 in sizes:
        known = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if np.prod(sizes) != len(devices):
        raise UserError(f"{given} does not divide {len(devices)} devices: set mesh sizes whose product is that number")
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays with a leading batch axis: split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """The number of parts a batch is split into, which must divide every (micro)batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process feeds to its devices.

    Args:
      mesh: the mesh.
      batch_size: rows of the global batch.

    Returns:
      Sorted row numbers, 0 ≤ row < batch_size.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise UserError(
            f"batch size {batch_size} does not divide over the {parts} batch shards of the mesh (data × fsdp): "
            f"use a multiple of {parts}"
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def to_global(mesh: Mesh, batch_size: int, local: Any) -> Any:
    """Puts this process's rows of a batch onto its devices, as parts of global arrays.

    Args:
      mesh: the mesh.
      batch_size: rows of the global batch.
      local: a tree of arrays whose leading axis runs over `local_rows(mesh, batch_size)`.

    Returns:
      The same tree with global arrays of `batch_size` rows, sharded by `batch_sharding`.
    """
    sharding = batch_sharding(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(place, local)
