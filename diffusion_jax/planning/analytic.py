"""What can be said of a run without its compiler: GPUs that are not there."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel.collectives import BETWEEN_SLICES, Collective
from diffusion_jax.parallel.mesh import MeshConfig, batch_parts, make_mesh
from diffusion_jax.parallel.topology import Topology
from diffusion_jax.planning.programs import frozen_networks, train_batch
from diffusion_jax.training.diffusion_stage import DenoisingStage
from diffusion_jax.training.diffusion_step import training_loss


@dataclasses.dataclass(frozen=True)
class AbsentGPU:
    """A device that takes a place in a mesh and computes nothing."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "absent"


def absent_gpus(topology: Topology) -> list[AbsentGPU]:
    """The devices of a GPU topology, a process on each node; JAX's own backend becomes the CPU."""
    jax.config.update("jax_platforms", "cpu")
    return [AbsentGPU(index, index // topology.slice_chips) for index in range(topology.num_chips)]


def step_macs(stage: DenoisingStage) -> int:
    """Multiply-adds of a train step, the first stage's and those of recomputation included."""

    def plain(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    arguments = (stage.abstract_state(), frozen_networks(stage), train_batch(stage))
    return count_macs(stage.make_step(), *jax.tree.map(plain, arguments))


def kept_activations(stage: DenoisingStage) -> int:
    """Bytes on each device of what the forward pass keeps for the backward pass, by the model's `remat` policy.

    The compiler may keep less, where it recomputes cheap things, and needs work space beside it.
    """
    system = stage.system
    rows = stage.train.batch_size // stage.train.microbatches // batch_parts(stage.mesh)

    def residuals(model: Any, x0: jax.Array, cond: Any, step: jax.Array, index: jax.Array) -> Any:
        history = system.initial_history()

        def loss(model: Any) -> jax.Array:
            return training_loss(system, model, x0, cond, step, index, history)[0].mean()

        return jax.vjp(loss, model)[1]

    x0 = jax.ShapeDtypeStruct((rows, *system.latent_shape), jnp.float32)
    cond = system.conditioner.spec.example(rows, *system.latent_shape[:2])
    index, step = jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    # One device of this machine stands for one of theirs. cuDNN's kernel is for bfloat16, and keeps what Pallas' keeps.
    flash = stage.attention != "xla" and system.config.model.get("dtype") == "bfloat16"
    kernel = attention_kernel("pallas" if flash else "xla")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), kernel:
        kept = jax.eval_shape(residuals, system.abstract_model, x0, cond, step, index)
    # Among what is kept are the parameters themselves, as they are or in the compute dtype.
    shapes = {leaf.shape for leaf in jax.tree.leaves(system.abstract_model)}
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.shape not in shapes)


def gradient_collectives(stage: DenoisingStage, topology: Topology) -> list[Collective]:
    """What data and fsdp axes need at least in a step; the traffic of a tensor axis is not counted.

    Parameters split over fsdp are gathered in the forward and in the backward pass and their gradients summed onto the
    shards; all gradients are then summed over the copies.
    """
    mesh, fsdp, copies = stage.mesh, stage.mesh.shape["fsdp"], stage.mesh.shape["data"]
    split = whole = 0
    for leaf in jax.tree.leaves(stage.abstract_state().model):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if fsdp > 1 and any("fsdp" in (axis if isinstance(axis, tuple) else (axis,)) for axis in leaf.sharding.spec):
            split += size
        else:
            whole += size
    found = [
        Collective("all-gather", split, fsdp, 2),
        Collective("reduce-scatter", split * fsdp, fsdp, 1),
        Collective("all-reduce", split, copies, 1),
        Collective("all-reduce", whole, batch_parts(mesh), 1),
    ]
    if topology.num_slices > 1:
        # Of each node's sum every device sends its share to the next node, twice but for the share that stays.
        nodes, sharers = topology.num_slices, topology.slice_chips
        shares = int(2 * (nodes - 1) / nodes * (split * fsdp + whole) / sharers)
        found.append(Collective(BETWEEN_SLICES, shares, 1, 1))
    return [each for each in found if each.bytes_sent]
