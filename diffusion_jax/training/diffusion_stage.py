"""Diffusion models and classifiers of noisy data as the training loop sees them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from diffusion_jax.config import Schema
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.system import SCHEMA, System
from diffusion_jax.sampling.grid import draw_grid, grid_stream
from diffusion_jax.training.diffusion_state import TrainState, abstract_state, new_state
from diffusion_jax.training.diffusion_step import TIME_BUCKETS, make_train_step
from diffusion_jax.training.run_log import averages
from diffusion_jax.training.sample_scores import TrainingEvaluation
from diffusion_jax.training.stage import DrawPicture


class DiffusionStage:
    """A `Stage` that trains what the section `model` names; its frozen network is the first stage.

    Args:
      config: a complete config.
      facts: what is known of the data.
      devices: the devices of the mesh; None means all devices of all processes.

    Raises:
      UserError: parts that do not fit together or the mesh, or values out of range.
    """

    schema: Schema = SCHEMA

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts, devices: Sequence[Any] | None = None):
        self.system = System(config, facts)
        self.train, self.data, self.facts = self.system.train, self.system.data, facts
        mesh: MeshConfig = self.system.build("mesh")
        self.mesh, self.attention = make_mesh(mesh, devices), mesh.attention
        self.optimizer, self.learning_rate = self.system.build("optimizer")

    def abstract_state(self) -> TrainState:
        """See `Stage`."""
        return abstract_state(self.system, self.optimizer, self.mesh)

    def new_state(self, abstract: TrainState) -> TrainState:
        """See `Stage`."""
        return new_state(self.system, self.optimizer, abstract)

    def load_frozen(self) -> Any:
        """See `Stage`."""
        return self.system.load_first_stage()

    def make_step(self) -> Callable[..., Any]:
        """See `Stage`."""
        return make_train_step(self.system, self.optimizer, self.mesh)

    def summarise(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The means of the metrics, and the mean loss of each bucket of times that was drawn."""
        scalars = averages(metrics, without=("loss_sum", "count"))
        loss_sum, count = (np.sum([each[name] for each in metrics], axis=0) for name in ("loss_sum", "count"))
        for i in range(TIME_BUCKETS):
            if count[i]:
                low, high = i / TIME_BUCKETS, (i + 1) / TIME_BUCKETS
                scalars[f"loss_t_{low:.2f}_{high:.2f}"] = float(loss_sum[i] / count[i])
        return scalars

    def flops_per_image(self) -> float:
        """See `Stage`."""
        return self.system.train_flops_per_image()

    def drawing(self) -> DrawPicture:
        """Draws a grid of samples."""
        stream = grid_stream(self.system, self.mesh)

        def draw(state: TrainState, first_stage: Any, path: epath.Path) -> None:
            params = state.ema if self.system.sample.params == "ema" else state.model
            draw_grid(self.system, stream, params, first_stage, path)

        return draw

    def evaluation(self, workdir: epath.Path) -> TrainingEvaluation:
        """See `Stage`."""
        return TrainingEvaluation(self.system, self.mesh, workdir)

    def checkpoint_facts(self, state: TrainState) -> dict[str, Any]:
        """Nothing."""
        return {}
