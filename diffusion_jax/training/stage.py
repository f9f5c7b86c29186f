"""What the training loop asks of a kind of training; `diffusion_stage` and `autoencoder_stage` answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from diffusion_jax.data import DataConfig
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.models.layers.attention_kernels import KernelChoice
from diffusion_jax.sections import TrainConfig

DrawPicture = Callable[[Any, Any, epath.Path], None]
"""Draws a picture from (state, frozen networks) into a PNG."""


class Evaluation(Protocol):
    """Measures a model in training."""

    def __call__(self, state: Any, step: int, frozen: Any, metadata: dict[str, Any], /) -> dict[str, float]:
        """Scalars for the log, from the state of a step, the frozen networks and what is saved with a checkpoint."""

    def close(self) -> None:
        """Finishes what is being written."""


class Stage(Protocol):
    """One kind of training: the first stage of latent diffusion, or the diffusion itself.

    A state is a `NamedTuple` with at least `step`, `model` and `ema`; checkpoints hold its fields.

    Attributes:
      train: the `train` section.
      data: the `data` section.
      facts: what is known of the data.
      mesh: the mesh.
      attention: what `mesh.attention` asks for.
      learning_rate: of a step.
    """

    train: TrainConfig
    data: DataConfig
    facts: DatasetFacts
    mesh: Mesh
    attention: KernelChoice
    learning_rate: Callable[[int], jax.Array]

    def abstract_state(self) -> Any:
        """The state with a sharded `jax.ShapeDtypeStruct` for each array."""

    def new_state(self, abstract: Any) -> Any:
        """The state before the first step, each array created on the devices that hold its shards."""

    def load_frozen(self) -> Any:
        """The networks that are used but not trained."""

    def make_step(self) -> Callable[[Any, Any, dict[str, jax.Array]], tuple[Any, dict[str, jax.Array]]]:
        """The step, (state, frozen, batch) → (state, metrics); the metrics have at least a scalar `loss`."""

    def summarise(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Scalars for the log, from the metrics of some steps."""

    def flops_per_image(self) -> float:
        """FLOPs of a step for one image."""

    def drawing(self) -> DrawPicture:
        """What draws the pictures of `train.sample_every`."""

    def evaluation(self, workdir: epath.Path) -> Evaluation:
        """What measures at the steps of `train.eval_every`."""

    def checkpoint_facts(self, state: Any) -> dict[str, Any]:
        """What a checkpoint of the state is to tell beside the config, anything JSON can hold."""
