"""Scoring the model of a run while it trains, and keeping its best checkpoint."""

import json
from typing import Any

from etils import epath
from jax.sharding import Mesh

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.scoring import open_scorer, uint8_rule, values_of
from diffusion_jax.files import write_atomically
from diffusion_jax.parallel import processes
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.open_run import BEST
from diffusion_jax.runs.system import System
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.labels import parse_labels
from diffusion_jax.sampling.sample_set import DrawnImages
from diffusion_jax.training.diffusion_state import TrainState


class TrainingEvaluation:
    """Scores samples of a model in training; sampler, references and extractor are opened once.

    Args:
      system: the run's parts; its section `evaluate` says what is measured.
      mesh: the mesh; each batch of samples is split over its batch axes.
      workdir: the run's folder; results go to `evaluations/STEP.json`, the best checkpoint to `best`.

    Raises:
      UserError: references or weights that are missing, or a metric that is not measured.
    """

    def __init__(self, system: System, mesh: Mesh, workdir: epath.Path):
        self.system, self.workdir, self.config = system, workdir, system.evaluate
        self.stream = SampleStream(system, mesh, uint8=uint8_rule(self.config.protocol))
        self.labels = parse_labels(self.config.labels, self.config.num, system.facts.num_classes, system.train.seed)
        self.scorer = open_scorer(self.config, (system.data.image_size, system.data.image_size, 3), self.config.num)
        self.best: Checkpoints | None = None
        self.best_value: float | None = None
        if self.config.best is not None:
            self.best = Checkpoints(workdir, folder=BEST, keep=1)
            if self.best.steps():
                self.best_value = self.best.metadata(self.best.choose("latest"))[BEST][self.config.best]

    def __call__(self, state: TrainState, step: int, first_stage: Any, metadata: dict[str, Any]) -> dict[str, float]:
        """Scores the weights that `sample.params` names.

        Args:
          state: the state of the run.
          step: its step.
          first_stage: the first stage.
          metadata: what is saved with a checkpoint.

        Returns:
          The metrics under `eval/NAME`.

        Raises:
          UserError: `evaluate.best` is not among the metrics.
        """
        params = state.ema if self.system.sample.params == "ema" else state.model
        facts = {"workdir": str(self.workdir), "checkpoint_step": step, "label_law": self.config.labels}
        seed = self.system.train.seed
        images = DrawnImages(self.system, self.stream, params, first_stage, self.labels, seed, facts)
        result = self.scorer.measure(images)
        values = values_of(result)
        if processes.is_main():
            text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.workdir / f"evaluations/{step:08}.json", text.encode())
        if self.best is not None and self.config.best is not None:
            if self.config.best not in values:
                raise UserError(
                    f"evaluate.best='{self.config.best}' is not measured: there are {', '.join(values)}; "
                    "set evaluate.best or evaluate.metrics"
                )
            value = values[self.config.best]
            if self.config.improves(value, on=self.best_value):
                self.best_value = value
                self.best.save(step, {"model": state.model, "ema": state.ema}, {**metadata, BEST: values})
        return {f"eval/{name}": value for name, value in values.items()}

    def close(self) -> None:
        """Finishes what is being written."""
        if self.best is not None:
            self.best.close()
