"""The programs of a run, compiled for devices that need not be there."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data.latents import MIRRORED, MOMENTS
from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel.collectives import Collective, read_collectives
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import batch_parts, batch_sharding, replicated
from diffusion_jax.records import Field
from diffusion_jax.sampling.generation import make_sample_function
from diffusion_jax.training.diffusion_stage import DenoisingStage, DiffusionStage

# Seconds instead of minutes for a first stage's convolutions, for about 1 % more memory. JAX 0.10 has the first option,
# later versions the second.
QUICK: dict[str, Any] = (
    {"exec_time_optimization_effort": -1.0}
    if "jax_exec_time_optimization_effort" in jax.config.values
    else {"optimization_level": "O1"}
)

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program with its arguments' shapes and shardings, traced but not compiled.

    Attributes:
      traced: what `jax.jit(...).trace` gave.
      mesh: the mesh.
      argument_bytes: of the arguments, on each device.
      output_bytes: of the results, on each device.
      macs: multiply-adds of a run on all devices together; None if its loops have no fixed length.
    """

    traced: Any
    mesh: Any
    argument_bytes: int
    output_bytes: int
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program.

    Attributes:
      peak_bytes: memory in use on each device at the worst moment, arguments included.
      fits: whether that is within the device's memory.
      collectives: what devices send each other; unknown, None, if it does not fit.
      text: the optimised program; None if it does not fit.
      seconds: time the compiler took.
    """

    peak_bytes: float
    fits: bool
    collectives: tuple[Collective, ...] | None
    text: str | None
    seconds: float


def device_bytes(tree: Any) -> int:
    """Bytes that each device holds of a tree of sharded `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def frozen_networks(stage: DenoisingStage) -> Any:
    """The frozen networks without their weights, a copy on each device."""
    everywhere = replicated(stage.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        stage.system.abstract_frozen(),
    )


def train_batch(stage: DenoisingStage) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as the training loop feeds it: images or the moments of a cache, and the arrays of the conditioner."""
    rows, data, sharding = stage.train.batch_size, stage.data, batch_sharding(stage.mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    spec = stage.system.conditioner.array_spec
    batch = {name: array(field.shape, jnp.dtype(field.dtype)) for name, field in spec.items()}
    if not data.name.startswith("cache:"):
        return {**batch, "image": array((data.image_size, data.image_size, data.channels), jnp.uint8)}
    images = jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.channels), jnp.float32)
    first_stage = stage.system.autoencoder.abstract()
    posterior = jax.eval_shape(lambda first_stage, images: first_stage.posterior(images), first_stage, images)
    for name in (name for name in MOMENTS if name in posterior):
        batch[name] = array(posterior[name].shape[1:], posterior[name].dtype)
        if data.flip:
            batch[MIRRORED + name] = batch[name]
    return batch


def train_program(stage: DenoisingStage) -> Program:
    """The train step of a run."""
    state = stage.abstract_state()
    out_shardings = (shardings_of(state), replicated(stage.mesh))
    step = jax.jit(stage.make_step(), donate_argnums=0, out_shardings=out_shardings)
    arguments = (state, frozen_networks(stage), train_batch(stage))
    return _program(step, stage, arguments, device_bytes(state))


def sample_program(stage: DiffusionStage) -> Program:
    """What draws one batch of samples."""
    system, mesh = stage.system, stage.mesh
    rows = system.sample.batch_size * batch_parts(mesh)
    spec = {"index": Field((), "int32"), **system.conditioner.array_spec}
    draw = jax.jit(make_sample_function(system, mesh), out_shardings=batch_sharding(mesh))
    batch = {
        name: jax.ShapeDtypeStruct((rows, *field.shape), jnp.dtype(field.dtype), sharding=batch_sharding(mesh))
        for name, field in spec.items()
    }
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    arguments = (stage.abstract_state().ema, None, None, frozen_networks(stage), batch, seed)
    return _program(draw, stage, arguments, rows * stage.data.image_size**2 * stage.data.channels)


def _program(function: Any, stage: DenoisingStage, arguments: tuple[Any, ...], output_bytes: int) -> Program:
    with jax.set_mesh(stage.mesh):
        with attention_kernel(stage.attention):
            traced = function.trace(*arguments)
        try:
            macs = count_macs(function, *arguments)
        except ValueError:
            macs = None
    return Program(traced, stage.mesh, device_bytes(arguments), output_bytes, macs)


def compile_program(program: Program, thorough: bool) -> Compiled:
    """Compiles a program.

    Args:
      program: the program, for devices of one kind.
      thorough: compile as a run would; else with less effort, which takes a few times less time.

    Returns:
      What the compiler says, also of a program that needs more memory than there is.
    """
    start = time.perf_counter()
    with jax.set_mesh(program.mesh):
        lowered = program.traced.lower()
    try:
        compiled = lowered.compile(compiler_options={} if thorough else QUICK)
    except jax.errors.JaxRuntimeError as error:
        needed = _needed_bytes(str(error), program.argument_bytes)
        if needed is None:
            raise
        return Compiled(needed, False, None, None, time.perf_counter() - start)
    text = compiled.as_text()
    peak = compiled.memory_analysis().peak_memory_in_bytes
    collectives = tuple(read_collectives(text))
    return Compiled(peak, True, collectives, text, time.perf_counter() - start)


def _needed_bytes(message: str, argument_bytes: int) -> float | None:
    """What a program would need that the compiler refused for its memory; None if it was refused for another reason."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    used = re.search(r"Used ([\d.]+)([KMG]?) of", message)
    if used:
        return float(used[1]) * UNITS[used[2]]
    temporary = re.search(r"HLO temporaries \(([\d.]+)([KMG]?)\)", message)
    return float(temporary[1]) * UNITS[temporary[2]] + argument_bytes if temporary else None
