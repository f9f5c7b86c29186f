"""Diffusion models and classifiers of noisy data as the training loop sees them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import ml_collections
import numpy as np
from etils import epath

from diffusion_jax.data import BatchContents
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.data.latents import MIRRORED, MOMENTS
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.optim.freezing import freeze
from diffusion_jax.parallel.mesh import make_mesh
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.system import ClassifierSystem, DiffusionSystem, System
from diffusion_jax.sampling.grid import draw_grid, grid_stream
from diffusion_jax.training.diffusion_state import TrainState, abstract_state, new_state
from diffusion_jax.training.diffusion_step import TIME_BUCKETS, make_train_step
from diffusion_jax.training.run_log import averages
from diffusion_jax.training.sample_scores import TrainingEvaluation
from diffusion_jax.training.stage import DrawPicture, Evaluation, Step


class DenoisingStage:
    """What the stages that train on noisy data share; see `Stage`.

    Args:
      config: a complete config.
      facts: what is known of the data.
      devices: the devices of the mesh; None means all devices of all processes.

    Raises:
      UserError: parts that do not fit together or the mesh, or values out of range.
    """

    system_class: ClassVar[type[DiffusionSystem] | type[ClassifierSystem]]

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts, devices: Sequence[Any] | None = None):
        self.system: System = self.system_class(config, facts)
        self.train, self.data, self.facts = self.system.train, self.system.data, facts
        self.mesh, self.attention = make_mesh(self.system.mesh_config, devices), self.system.mesh_config.attention
        optimizer, self.learning_rate = self.system.build("optimizer")
        self.optimizer = freeze(optimizer, self.train.freeze)
        moments = [prefix + name for prefix in ("", MIRRORED) for name in MOMENTS]
        wanted = ("image", *moments, *(("features",) if self.system.alignment else ()))
        fields = tuple(name for name in wanted if name in facts.record_spec)
        self.contents = BatchContents(fields, self.system.conditioner.arrays, self.train.seed)

    def abstract_state(self) -> TrainState:
        """See `Stage`."""
        return abstract_state(self.system, self.optimizer, self.mesh)

    def new_state(self, abstract: TrainState) -> TrainState:
        """See `Stage`."""
        return new_state(self.system, self.optimizer, abstract)

    def load_frozen(self) -> Frozen:
        """See `Stage`."""
        return self.system.load_frozen()

    def make_step(self) -> Step:
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

    def checkpoint_facts(self, state: TrainState) -> dict[str, Any]:
        """Nothing."""
        return {}


class DiffusionStage(DenoisingStage):
    """A `Stage` that trains a diffusion model; arguments as of `DenoisingStage`."""

    system_class = DiffusionSystem
    system: DiffusionSystem

    def drawing(self) -> DrawPicture:
        """Draws a grid of samples."""
        stream = grid_stream(self.system, self.mesh)

        def draw(state: TrainState, frozen: Frozen, path: epath.Path) -> None:
            draw_grid(self.system, stream, state.weights(self.system.sample.params), frozen, path)

        return draw

    def evaluation(self, folder: RunFolder) -> Evaluation:
        """See `Stage`."""
        return TrainingEvaluation(self.system, self.mesh, folder)


class ClassifierStage(DenoisingStage):
    """A `Stage` that trains a classifier, which draws no samples; arguments as of `DenoisingStage`."""

    system_class = ClassifierSystem

    def drawing(self) -> DrawPicture:
        """Never asked for: `ClassifierSystem` refuses `train.sample_every`."""
        raise AssertionError("a classifier draws no samples")

    def evaluation(self, folder: RunFolder) -> Evaluation:
        """Never asked for: `ClassifierSystem` refuses `train.eval_every`."""
        raise AssertionError("a classifier draws no samples")
