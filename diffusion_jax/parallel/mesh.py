"""The device mesh and how a batch lies on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
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
      dcn: slices that the data axis spans: groups of devices with a fast network within and a slower one between them,
        which then carries nothing but the sum of the gradients. None counts the slices of TPUs and takes other devices
        in their own order, that of their processes.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    attention: Literal["auto", "cudnn", "pallas", "xla"] = "auto"
    dcn: int | None = None

    def sizes(self, num_devices: int) -> tuple[int, int, int]:
        """The sizes of the axes (data, fsdp, tensor) on `num_devices` devices.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        given = f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}"
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise UserError(f"{given}: sizes are positive, and at most one is -1 (the rest of the devices)")
        if -1 in sizes:
            known = int(np.prod([size for size in sizes if size != -1]))
            sizes[sizes.index(-1)] = max(num_devices // known, 1)
        if np.prod(sizes) != num_devices:
            raise UserError(
                f"{given} does not divide {num_devices} devices: set mesh sizes whose product is that number"
            )
        return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices along the axes (data, fsdp, tensor), the slices one after the other along data.

    Args:
      config: sizes of the axes.
      devices: the devices to use; None means all devices of all processes.

    Returns:
      A mesh with axes "data", "fsdp", "tensor".

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the slices do not divide the data axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    slices = group_by_slice(devices, config.dcn)
    types = (AxisType.Auto,) * len(AXES)
    if len(slices) == 1:
        return jax.make_mesh(sizes, AXES, devices=slices[0], axis_types=types)
    if sizes[0] % len(slices):
        raise UserError(
            f"mesh.data={sizes[0]} does not divide over {len(slices)} slices, between which only data is split: set "
            f"mesh.fsdp and mesh.tensor to divide the {len(slices[0])} devices of a slice"
        )
    within = (sizes[0] // len(slices), *sizes[1:])
    return Mesh(
        np.concatenate([mesh_utils.create_device_mesh(within, each) for each in slices]), AXES, axis_types=types
    )


def group_by_slice(devices: Sequence[Any], dcn: int | None) -> list[list[Any]]:
    """Groups devices by the slice they belong to.

    Args:
      devices: the devices.
      dcn: number of slices, see `MeshConfig`.

    Returns:
      The devices of each slice, in the given order.

    Raises:
      UserError: TPUs of another number of slices, slices of several sizes, or a number that does not divide.
    """
    slices: dict[int, list[Any]] = {}
    if devices[0].platform == "tpu":
        for device in devices:
            slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
        if dcn not in (None, len(slices)):
            raise UserError(f"mesh.dcn={dcn}: these TPUs are of {len(slices)} slices: leave mesh.dcn out")
    else:
        count = 1 if dcn is None else dcn
        if count < 1 or len(devices) % count:
            raise UserError(f"mesh.dcn={dcn} does not divide {len(devices)} devices into slices of one size")
        size = len(devices) // count
        slices = {index: list(devices[index * size : (index + 1) * size]) for index in range(count)}
    groups = [slices[index] for index in sorted(slices)]
    if len({len(group) for group in groups}) > 1:
        raise UserError(f"slices of {', '.join(str(len(group)) for group in groups)} devices: they must be of one size")
    return groups


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


def split_rows(rows: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """Splits a sharded batch [B, …] into [parts, B / parts, …], each part spread over all devices.

    Part k takes rows k, k + parts, …, so every device splits the rows it has and none are moved.
    """
    rows = rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))))
