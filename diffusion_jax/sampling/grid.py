"""The labelled pictures of samples that a run draws while it trains."""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.parallel import processes
from diffusion_jax.parallel.mesh import batch_parts
from diffusion_jax.pictures import grid, save
from diffusion_jax.runs.system import System
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.labels import BALANCED, parse_labels


def grid_stream(system: System, mesh: Mesh) -> SampleStream:
    """The stream for `draw_grid`, with no more images on each device than the grid needs."""
    needed = -(-system.sample.grid // batch_parts(mesh))
    return SampleStream(system, mesh, rows=min(needed, system.sample.batch_size))


def draw_grid(system: System, stream: SampleStream, model: Any, first_stage: Any, path: epath.Path) -> None:
    """Draws the config's number of balanced samples into one labelled picture.

    Args:
      system: the run's parts.
      stream: the compiled sampler.
      model: the weights to draw from.
      first_stage: the first stage.
      path: the PNG to write.
    """
    labels = parse_labels(BALANCED, system.sample.grid, system.facts.num_classes, system.train.seed)
    images = np.concatenate(list(stream(model, first_stage, labels, system.train.seed)))
    if processes.is_main():
        captions = [system.facts.class_names[label] for label in labels] if stream.labelled else None
        save(grid(images, captions, columns=min(10, len(labels))), path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("grid")
