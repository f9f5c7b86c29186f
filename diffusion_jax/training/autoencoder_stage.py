"""First stages as the training loop sees them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import ml_collections
from etils import epath

from diffusion_jax.autoencoding.reconstruction import Reconstructions
from diffusion_jax.autoencoding.step import AutoencoderState
from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem
from diffusion_jax.config import Schema
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.models.autoencoder.autoencoder import Autoencoder
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator
from diffusion_jax.models.autoencoder.lpips import LPIPS
from diffusion_jax.parallel.create import create_sharded, sharded_shapes
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.trained_first_stage import LATENTS
from diffusion_jax.training.run_log import averages
from diffusion_jax.training.stage import DrawPicture


class AutoencoderStage:
    """A `Stage` that trains an autoencoder, with a discriminator or without; its frozen network is LPIPS.

    Args:
      config: a complete config.
      facts: what is known of the data.

    Raises:
      UserError: parts that do not fit together or the mesh, or values out of range.
    """

    schema: Schema = AUTOENCODER_SCHEMA

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts):
        self.system = AutoencoderSystem(config, facts)
        self.train, self.data, self.facts = self.system.train, self.system.data, facts
        devices: MeshConfig = self.system.build("mesh")
        self.mesh, self.attention = make_mesh(devices), devices.attention
        self.learning_rate = self.system.learning_rate

    @cached_property
    def reconstructions(self) -> Reconstructions:
        """The images that it is judged on."""
        return Reconstructions(self.system, self.mesh)

    def abstract_state(self) -> AutoencoderState:
        """See `Stage`."""
        rules = (*Autoencoder.partition_rules, *PatchDiscriminator.partition_rules)
        return sharded_shapes(self.system.init_state, rules, self.mesh)

    def new_state(self, abstract: AutoencoderState) -> AutoencoderState:
        """See `Stage`."""
        return create_sharded(self.system.init_state, abstract)

    def load_frozen(self) -> LPIPS | None:
        """See `Stage`."""
        return self.system.load_lpips()

    def make_step(self) -> Callable[..., Any]:
        """See `Stage`."""
        return self.system.step

    def summarise(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The means of the metrics."""
        return averages(metrics)

    def flops_per_image(self) -> float:
        """See `Stage`."""
        return self.system.train_flops_per_image()

    def drawing(self) -> DrawPicture:
        """Draws images and below each its reconstruction by the averaged weights; beside it, the latents' histogram."""
        return lambda state, lpips, path: self.reconstructions.draw(state.ema, path)

    def evaluation(self, workdir: epath.Path) -> "ReconstructionQuality":
        """See `Stage`."""
        return ReconstructionQuality(self.reconstructions)

    def checkpoint_facts(self, state: AutoencoderState) -> dict[str, Any]:
        """The statistics of the latents that the averaged weights make of training images."""
        return {LATENTS: self.reconstructions.latent_statistics(state.ema).to_json()}


class ReconstructionQuality:
    """How well the averaged weights reconstruct, as `eval/psnr` in dB, `eval/ssim`, `eval/lpips` and `eval/rfid`.

    The last two are there where their networks have weights.

    Args:
      reconstructions: the images.
    """

    def __init__(self, reconstructions: Reconstructions):
        self.reconstructions = reconstructions

    def __call__(
        self, state: AutoencoderState, step: int, lpips: LPIPS | None, metadata: dict[str, Any]
    ) -> dict[str, float]:
        """Measures; see `stage.Evaluation`."""
        return {f"eval/{name}": value for name, value in self.reconstructions.quality(state.ema, lpips).items()}

    def close(self) -> None:
        """Nothing is being written."""
