"""A training step, compiled and fed, for the benchmarks to time."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import complete
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step

CLASSES = 1000


class TrainingStep:
    """The product's own training step on random data, which takes the place of latents.

    Args:
      model: the config section `model`.
      input_shape: (H, W, C) of what the backbone sees.
      batch_size: images per step.
      sections: further sections of the config, over the defaults below.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        input_shape: tuple[int, int, int],
        batch_size: int,
        sections: Mapping[str, Any] | None = None,
    ):
        config = {
            "data": {"name": "random", "image_size": input_shape[0], "channels": 3},
            "conditioner": {"name": "class", "label_drop": 0.1},
            "autoencoder": {"name": "identity"},
            "model": dict(model),
            "path": {"name": "ddpm"},
            "prediction": {"kind": "epsilon"},
            "loss": {"name": "simple"},
            "ema": {"name": "constant", "max_decay": 0.9},
            "optimizer": {"name": "adamw"},
            "train": {"steps": 1, "batch_size": batch_size},
            "sampler": {"name": "ddim"},
            "guidance": {"name": "cfg"},
        }
        self.system = DiffusionSystem(
            complete({**config, **(sections or {})}, DIFFUSION_SCHEMA), DatasetFacts(CLASSES, (), "random")
        )
        # The "image" stands for the latent, so that no autoencoder is part of the figure.
        self.system.latent_shape = input_shape
        mesh = make_mesh(MeshConfig())
        optimizer, _ = self.system.build("optimizer")
        abstract = abstract_state(self.system, optimizer, mesh)
        self.state = new_state(self.system, optimizer, abstract)
        self.frozen = self.system.load_frozen()
        generator = np.random.default_rng(0)
        self.batch = {
            "image": generator.integers(0, 256, (batch_size, *input_shape), dtype=np.uint8),
            "label": generator.integers(0, CLASSES, batch_size, dtype=np.int32),
        }
        step = jax.jit(
            make_train_step(self.system, optimizer, mesh),
            donate_argnums=0,
            out_shardings=(shardings_of(abstract), replicated(mesh)),
        )
        start = time.perf_counter()
        self.compiled = step.lower(self.state, self.frozen, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start

    def seconds(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after one that does not count."""
        found = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
            metrics["loss"].block_until_ready()
            found.append(time.perf_counter() - start)
        return found[1:]

    def flops(self) -> float:
        """FLOPs of a step: three forward passes of two FLOPs a multiply-add."""
        return self.system.train_flops_per_image() * len(self.batch["label"])


def median_seconds(function: Any, repeats: int) -> float:
    """The median time of a compiled function without arguments, after one call that does not count."""
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - start)
    return statistics.median(found)
