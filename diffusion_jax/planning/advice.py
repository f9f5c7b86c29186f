"""Where a mesh wastes chips."""

import itertools
import math
from collections.abc import Iterator

import jax

from diffusion_jax.parallel.mesh import batch_parts
from diffusion_jax.parallel.topology import GIB, Topology
from diffusion_jax.planning.bounds import Bound
from diffusion_jax.planning.programs import device_bytes
from diffusion_jax.training.diffusion_stage import DenoisingStage

# Shares of a chip's memory or of the model that are worth a word.
MUCH = 0.25
LITTLE = 0.05


def advice(stage: DenoisingStage, topology: Topology, bound: Bound) -> Iterator[str]:
    """One sentence for each thing that a better config would not suffer.

    Args:
      stage: the run.
      topology: its chips.
      bound: of its train step.

    Yields:
      The sentences; none if there is nothing to say.
    """
    mesh, config, batch = stage.mesh, stage.system.config, stage.train.batch_size
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    if batch < topology.num_chips:
        yield (
            f"{batch} images on {topology.num_chips} chips is less than one each: chips of the tensor axis share an "
            "image; take a larger batch or fewer chips"
        )
    state = stage.abstract_state()
    held = device_bytes(state)
    if fsdp == 1 and mesh.shape["data"] > 1 and held > MUCH * topology.chip.hbm:
        yield (
            f"every chip holds all {held / GIB:.1f} GiB of parameters, optimizer and EMA: mesh.fsdp splits them, over "
            f"{topology.slice_chips} chips to {held / topology.slice_chips / GIB:.2f} GiB"
        )
    leaves = jax.tree.leaves(state.model)
    for axis in ("fsdp", "tensor"):
        whole = sum(leaf.size for leaf in leaves if axis not in str(leaf.sharding.spec))
        total = sum(leaf.size for leaf in leaves)
        if mesh.shape[axis] > 1 and whole > LITTLE * total:
            yield f"{whole / total:.0%} of the parameters are not split over {axis}: its rules leave them"
    if topology.chip.platform == "tpu":
        torus = topology.shape
        rings = {math.prod(axes) for n in range(len(torus) + 1) for axes in itertools.combinations(torus, n)}
        for axis in ("fsdp", "tensor"):
            size = mesh.shape[axis]
            if size not in rings and size <= topology.slice_chips:
                shape = "×".join(map(str, torus))
                good = ", ".join(map(str, sorted(rings - {1})))
                yield f"mesh.{axis}={size} is no whole axis of the {shape} torus, so its rings are cut: {good} would be"
    elif fsdp * tensor > topology.slice_chips:
        yield (
            f"mesh fsdp × tensor = {fsdp * tensor} reaches beyond a node of {topology.slice_chips}: the slow network "
            "carries parameters"
        )
    if bound.compute is not None and bound.seconds > bound.compute:
        yield (
            f"the step is bound by {bound.by}, {bound.seconds / bound.compute:.1f}× what its FLOPs take: "
            f"{batch // batch_parts(mesh)} image(s) a chip are too few; take a larger batch or fewer chips"
        )
    if config.model.get("dtype") == "float32":
        yield "model.dtype=float32: the peak that bounds are counted with is bfloat16's; set model.dtype=bfloat16"
