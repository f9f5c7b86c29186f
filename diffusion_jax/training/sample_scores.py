"""Scoring the model of a run while it trains, and keeping its best checkpoint."""

import sys

from jax.sharding import Mesh

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.scoring import open_scorer, uint8_rule, values_of
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.parallel import processes
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.folder import RunFolder, read_metadata
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.drawn import UnfinishedSamples
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.requests import default_requests
from diffusion_jax.sampling.sample_set import DrawnImages
from diffusion_jax.training.diffusion_state import TrainState


class TrainingEvaluation:
    """Scores samples of a model in training; sampler, references and extractor are opened once.

    Args:
      system: the run's parts; its section `evaluate` says what is measured.
      mesh: the mesh; each batch of samples is split over its batch axes.
      folder: the run's folder; results go to `evaluations/STEP.json`, the best checkpoint to `best`.

    Raises:
      UserError: references or weights that are missing, or a metric that is not measured.
    """

    def __init__(self, system: DiffusionSystem, mesh: Mesh, folder: RunFolder):
        self.system, self.folder, self.config = system, folder, system.evaluate
        self.stream = SampleStream(system, mesh, uint8=uint8_rule(self.config.protocol))
        self.requests = default_requests(system, self.config.num, system.train.seed, self.config.labels)
        shape, data = (system.data.image_size, system.data.image_size, 3), system.data
        self.scorer = open_scorer(self.config, shape, self.config.num, ImageSettings.of(data))
        self.best: Checkpoints | None = None
        self.best_value: float | None = None
        if self.config.best is not None:
            self.best = folder.best()
            if self.best.steps():
                self.best_value = read_metadata(self.best, self.best.choose("latest")).more["best"][self.config.best]

    def __call__(self, state: TrainState, step: int, frozen: Frozen, metadata: RunMetadata) -> dict[str, float]:
        """Scores the weights that `sample.params` names.

        Args:
          state: the state of the run.
          step: its step.
          frozen: the frozen networks.
          metadata: what is saved with a checkpoint.

        Returns:
          The metrics under `eval/NAME`; none where the sampler did not arrive, and a line that says so.

        Raises:
          UserError: `evaluate.best` is not among the metrics.
        """
        params = state.weights(self.system.sample.params)
        facts = {"workdir": str(self.folder), "checkpoint_step": step, "label_law": self.config.labels}
        seed = self.system.train.seed
        images = DrawnImages(self.system, self.stream, params, frozen, self.requests, seed, facts)
        try:
            result = self.scorer.measure(images)
        except UnfinishedSamples as error:
            # A network that has hardly been trained may be hard to integrate; the run goes on.
            if processes.is_main():
                print(f"step {step}: not evaluated: {error}", file=sys.stderr)
            return {}
        values = values_of(result)
        if processes.is_main():
            self.folder.write_evaluation(step, result)
        if self.best is not None and self.config.best is not None:
            if self.config.best not in values:
                raise UserError(
                    f"evaluate.best='{self.config.best}' is not measured: there are {', '.join(values)}; "
                    "set evaluate.best or evaluate.metrics"
                )
            value = values[self.config.best]
            if self.config.improves(value, on=self.best_value):
                self.best_value = value
                items = {"model": state.model, "ema": state.ema}
                self.best.save(step, items, metadata.with_more(best=values).to_json())
        return {f"eval/{name}": value for name, value in values.items()}

    def close(self) -> None:
        """Finishes what is being written."""
        if self.best is not None:
            self.best.close()
