"""From a config to the parts of a run that trains a first stage; `system` does the same for diffusion."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.autoencoding.image_quality import psnr, ssim
from diffusion_jax.autoencoding.losses import AUTOENCODER_LOSSES
from diffusion_jax.autoencoding.objective import Generator
from diffusion_jax.autoencoding.step import AutoencoderState, AutoencoderStep
from diffusion_jax.config import Schema
from diffusion_jax.data import DataConfig
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.settings import LEAST_IMAGES
from diffusion_jax.interop.lpips import read_lpips
from diffusion_jax.models.autoencoder.autoencoder import AutoencoderKL
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator
from diffusion_jax.models.autoencoder.first_stage import KLConfig, VQConfig
from diffusion_jax.models.autoencoder.lpips import LPIPS
from diffusion_jax.models.layers.precision import DTypeName
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel import processes
from diffusion_jax.pictures import from_uint8, to_uint8
from diffusion_jax.schema import Section
from diffusion_jax.sections import DATA, EMA, MESH, NO_KEYS, OPTIMIZER, TRAIN, TrainConfig, kind_section


def no_discriminator() -> None:
    """Trains without an adversary."""


DISCRIMINATORS: Mapping[str, Callable[..., PatchDiscriminator | None]] = {
    "none": no_discriminator,
    "patchgan": PatchDiscriminator,
}
"""Discriminators by the `name` of the config section `discriminator`."""


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """The `lpips` section.

    Attributes:
      weights: files that together hold the weights of LPIPS; none leaves the perceptual term out.
      dtype: compute dtype of its convolutions.
    """

    weights: tuple[str, ...] = ()
    dtype: DTypeName = "float32"


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """The `evaluate` section: what a first stage in training is judged on.

    Attributes:
      split: the split of the data whose images are reconstructed; None takes `data.split`.
      num: images of that split to measure, and training images whose latents are measured for every checkpoint.
      batch_size: images that each device reconstructs at once.
      grid: images in the pictures drawn during training, at most `num`.
      inception_weights: the weight file of the FID network, with which rFID is measured too; None leaves it out.
      allow_few: measure rFID of fewer than 2048 images.

    Raises:
      UserError: a number below 1, or too few images for rFID.
    """

    split: str | None = None
    num: int = 1024
    batch_size: int = 16
    grid: int = 20
    inception_weights: str | None = None
    allow_few: bool = False

    def __post_init__(self) -> None:
        for field in ("num", "batch_size", "grid"):
            if getattr(self, field) < 1:
                raise UserError(f"evaluate.{field}={getattr(self, field)}: must be at least 1")
        if self.inception_weights is not None and self.num < LEAST_IMAGES and not self.allow_few:
            raise UserError(
                f"evaluate.num={self.num}: rFID of fewer than {LEAST_IMAGES} images says little, the covariance being "
                "singular; raise it, or set evaluate.allow_few=True"
            )


AUTOENCODER_SCHEMA: Schema = {
    "kind": kind_section("first_stage"),
    "data": DATA,
    "autoencoder": Section({"kl": KLConfig, "vq": VQConfig}),
    "loss": Section(AUTOENCODER_LOSSES),
    "discriminator": Section(DISCRIMINATORS, frozenset({"in_channels", "rngs"})),
    "lpips": Section(LPIPSConfig),
    "optimizer": OPTIMIZER,
    "discriminator_optimizer": OPTIMIZER,
    "ema": EMA,
    "train": TRAIN,
    "evaluate": Section(ReconstructionConfig, identity=NO_KEYS),
    "mesh": MESH,
}
"""Every section of a config that trains a first stage."""


class AutoencoderSystem:
    """The parts of a run that trains a first stage, built and checked against each other.

    Args:
      config: a complete config.
      facts: what is known of the data.

    Raises:
      UserError: parts that do not fit together, or values out of range.
    """

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts):
        self.config = config
        self.facts = facts
        self.train: TrainConfig = self.build("train")
        self.data: DataConfig = self.build("data")
        self.autoencoder: KLConfig | VQConfig = self.build("autoencoder")
        self.lpips: LPIPSConfig = self.build("lpips")
        self.evaluate: ReconstructionConfig = self.build("evaluate")
        if self.data.name.startswith("cache:"):
            raise UserError(
                f"data.name={self.data.name}: holds latents, and an autoencoder learns from images; name them"
            )
        if config.loss.name != config.autoencoder.name:
            raise UserError(
                f"loss '{config.loss.name}' does not train a '{config.autoencoder.name}' autoencoder: "
                f"set loss.name={config.autoencoder.name}"
            )
        if self.train.microbatches != 1:
            raise UserError(
                f"train.microbatches={self.train.microbatches}: the adaptive weight and batch norms are of a whole "
                "batch, so set 1 and a smaller train.batch_size or more devices"
            )
        if self.train.ema_widths:
            raise UserError(
                f"train.ema_widths={self.train.ema_widths}: a first stage has the one average of section ema; "
                "set train.ema_widths=() and train.snapshot_every=None"
            )
        if self.autoencoder.weights not in (None, "random"):
            raise UserError(
                f"autoencoder.weights={self.autoencoder.weights!r}: training starts from random weights; set None"
            )
        if self.lpips.weights and self.data.channels != 3:
            raise UserError(f"data.channels={self.data.channels}: LPIPS compares RGB images; set lpips.weights=()")
        self.optimizer, self.learning_rate = self.build("optimizer")
        opponent_optimizer, _ = self.build("discriminator_optimizer")
        self.step = AutoencoderStep(
            loss=self.build("loss"),
            optimizer=self.optimizer,
            opponent_optimizer=opponent_optimizer,
            ema=self.build("ema", batch_size=self.train.batch_size),
            latent_shape=self.latent_shape,
            seed=self.train.seed,
            flip=self.data.flip,
        )

    @classmethod
    def reads(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """The fields that it reads of a record beside the image: none."""
        return ()

    def build(self, section: str, **context: Any) -> Any:
        """Builds what a section names."""
        return AUTOENCODER_SCHEMA[section].build(section, self.config[section], **context)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the latents of one image."""
        abstract = jax.eval_shape(lambda: self.autoencoder.make_autoencoder(jax.random.key(0)))
        return abstract.latent_shape(self.data.image_size, self.data.channels)

    def init_state(self) -> AutoencoderState:
        """The state before the first step, a function of the config and `train.seed`."""
        seed = self.train.seed
        rngs = nnx.Rngs(keys.purpose_key(seed, "init_discriminator"))
        discriminator = self.build("discriminator", in_channels=self.data.channels, rngs=rngs)
        return self.step.init(self.autoencoder.make_autoencoder(keys.purpose_key(seed, "init")), discriminator)

    def load_lpips(self) -> LPIPS | None:
        """LPIPS with its weights; None, and a line that says so, if the config names no files."""
        if self.lpips.weights:
            return read_lpips(self.lpips.weights, dtype=self.lpips.dtype)
        if processes.is_main():
            print("lpips.weights is empty: training without the perceptual loss", file=sys.stderr)
        return None

    def reconstruct(
        self, model: Generator, images: jax.Array, lpips: LPIPS | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the autoencoder makes of images, without noise: from the mode of a KL posterior, or from codes.

        Args:
          model: the raw weights or their average.
          images: [B, H, W, C] uint8, H and W at least 11.
          lpips: the perceptual distance; None leaves it out.

        Returns:
          [B, H, W, C] uint8, and `psnr` (dB), `ssim` and, with its network, `lpips`, [B] each.
        """
        wanted = from_uint8(images)
        encoded = model.autoencoder.encode(wanted)
        latents = encoded.mean if isinstance(model.autoencoder, AutoencoderKL) else encoded  # [B, h, w, c]
        made = model.autoencoder.decode(latents)  # [B, H, W, C]
        quality = {"psnr": psnr(wanted, made), "ssim": ssim(wanted, made)}
        if lpips is not None:
            quality["lpips"] = lpips(wanted, made)
        return to_uint8(made), quality

    def encode(self, model: Generator, images: jax.Array, index: jax.Array) -> jax.Array:
        """The latents that a diffusion model is to be trained on, before any scale.

        Args:
          model: the raw weights or their average.
          images: [B, H, W, C] uint8.
          index: [B] numbers of the images, which with the seed decide the draws from KL posteriors.

        Returns:
          [B, h, w, c] float32: draws from the posteriors, or what is not yet quantised.
        """
        encoded = model.autoencoder.encode(from_uint8(images))
        if not isinstance(model.autoencoder, AutoencoderKL):
            return encoded  # [B, h, w, c]
        noise = keys.normal(keys.purpose_key(self.train.seed, "latent_statistics"), index, self.latent_shape)
        return encoded.sample(noise)  # [B, h, w, c]

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of a step for one image, LPIPS left out, counted from the traced step."""
        size = self.data.image_size
        batch = {"image": jax.ShapeDtypeStruct((1, size, size, self.data.channels), jnp.uint8)}
        state = jax.eval_shape(self.init_state)
        return count_macs(lambda state, batch: self.step(state, None, batch), state, batch)

    def train_flops_per_image(self) -> float:
        """FLOPs of a step for one image, LPIPS left out; a multiply-add is two."""
        return 2 * self.macs
