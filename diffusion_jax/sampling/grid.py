"""The labelled pictures of samples that a run draws while it trains."""

import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.models.frozen import Frozen
from diffusion_jax.parallel import processes
from diffusion_jax.parallel.mesh import batch_parts
from diffusion_jax.pictures import grid, save
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.drawn import UnfinishedSamples
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.requests import captions_of, default_requests


def grid_stream(system: DiffusionSystem, mesh: Mesh) -> SampleStream:
    """The stream for `draw_grid`, with no more images on each device than the grid needs."""
    needed = -(-system.sample.grid // batch_parts(mesh))
    return SampleStream(system, mesh, rows=min(needed, system.sample.batch_size))


def draw_grid(system: DiffusionSystem, stream: SampleStream, model: Any, frozen: Frozen, path: epath.Path) -> None:
    """Draws the config's number of samples into one captioned picture, balanced over the classes.

    Where the sampler does not arrive, as it may not with a network that has hardly been trained, there is no picture
    and a line says why: the run goes on.

    Args:
      system: the run's parts.
      stream: the compiled sampler.
      model: the weights to draw from.
      frozen: the frozen networks.
      path: the PNG to write.
    """
    requests = default_requests(system, system.sample.grid, system.train.seed)
    try:
        images = np.concatenate(list(stream(model, frozen, requests, system.train.seed)))
    except UnfinishedSamples as error:
        if processes.is_main():
            print(f"{path}: not drawn: {error}", file=sys.stderr)
        return
    if processes.is_main():
        captions = captions_of(requests, system.facts.class_names) if stream.conditional else None
        save(grid(images, captions, columns=min(10, len(requests))), path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("grid")
