"""From a config to the parts it names: the one place where data, models and diffusion meet."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.autoencoding.fingerprint import check_encoder
from diffusion_jax.config import Schema
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.data import DataConfig, LatentCache, Source
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.importance_sampling import LossHistory, LossSecondMoment
from diffusion_jax.diffusion.losses import LOSSES, ClassificationLoss, LearnedUncertainty, RepresentationAlignment
from diffusion_jax.diffusion.paths import PATHS
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import SAMPLERS, check_sampling
from diffusion_jax.diffusion.transforms import Transform, clip, dynamic_threshold, snap_to_codebook
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.settings import EvaluateConfig
from diffusion_jax.models.backbones import BACKBONES, backbone_macs
from diffusion_jax.models.conditioning.encoders import Conditioned
from diffusion_jax.models.conditioning.conditioners import CONDITIONERS, Conditioner
from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES
from diffusion_jax.models.unet.noisy_classifier import NoisyClassifier
from diffusion_jax.parallel.mesh import MeshConfig
from diffusion_jax.schema import Section
from diffusion_jax.optim.ema_profiles import EMA_PROFILES, EMAProfile, PowerEMA
from diffusion_jax.runs.trained_first_stage import as_trained, load_first_stage
from diffusion_jax.optim.optimizer import OPTIMIZERS
from diffusion_jax.sections import SampleConfig, TrainConfig

MODELS: Mapping[str, Callable[..., Any]] = {**BACKBONES, "noisy_classifier": NoisyClassifier}
"""What can be trained, by the `name` of the config section `model`."""


def uniform() -> None:
    """Leaves the draw of timesteps to the loss's own law."""


TIMESTEPS: Mapping[str, Callable[..., LossSecondMoment | None]] = {
    "uniform": uniform,
    "loss_second_moment": LossSecondMoment,
}
"""Timestep samplers by the `name` of the config section `timesteps`."""


def no_alignment() -> None:
    """Trains by the loss alone."""


ALIGNMENTS: Mapping[str, Callable[..., RepresentationAlignment | None]] = {
    "none": no_alignment,
    "repa": RepresentationAlignment,
}
"""Alignments with features of the images by the `name` of the config section `alignment`."""

GUIDANCES = {"cfg": ClassifierFreeGuidance}


SCHEMA: Schema = {
    "data": Section(DataConfig),
    "conditioner": Section(CONDITIONERS, frozenset({"num_classes"})),
    "autoencoder": Section(FIRST_STAGES),
    "model": Section(
        MODELS,
        frozenset({"input_shape", "out_channels", "conditioning", "num_classes", "rngs"}),
        importable=nnx.Module,
    ),
    "path": Section(PATHS),
    "prediction": Section(Prediction),
    "loss": Section(LOSSES),
    "timesteps": Section(TIMESTEPS, default="uniform"),
    "alignment": Section(ALIGNMENTS, default="none"),
    "optimizer": Section(OPTIMIZERS),
    "ema": Section(EMA_PROFILES, frozenset({"batch_size"})),
    "train": Section(TrainConfig),
    "sampler": Section(SAMPLERS),
    "guidance": Section(GUIDANCES),
    "sample": Section(SampleConfig),
    "evaluate": Section(EvaluateConfig),
    "mesh": Section(MeshConfig),
}
"""Every section of a config."""




class System:
    """The parts of a run, built and checked against each other.

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
        self.sample: SampleConfig = self.build("sample")
        self.evaluate: EvaluateConfig = self.build("evaluate")
        self.path = self.build("path")
        self.prediction: Prediction = self.build("prediction")
        self.loss = self.build("loss")
        self.loss.check(self.path, self.prediction)
        self.timesteps: LossSecondMoment | None = self.build("timesteps")
        if self.timesteps and self.path.chain_length is None:
            raise UserError(
                f"timesteps '{config.timesteps.name}' counts losses by timestep; path '{config.path.name}' has none: "
                "use a discrete path, or timesteps 'uniform'"
            )
        self.alignment: RepresentationAlignment | None = self.build("alignment")
        if self.alignment:
            self.check_alignment()
        self.ema: EMAProfile = self.build("ema", batch_size=self.train.batch_size)
        self.tracks = tuple(PowerEMA(sigma_rel=width) for width in self.train.ema_widths)
        self.sampler = self.build("sampler")
        self.guidance = self.build("guidance")
        check_sampling(self.sampler, self.path, self.prediction)
        first, last = self.sampler.times(self.path)[[0, -1]]
        if first < last:
            raise UserError(
                f"sampler '{config.sampler.name}' walks from data to noise and samples are drawn from noise: take "
                "another for sampler.name, such as 'ddim'"
            )
        self.conditioner: Conditioner = self.build("conditioner", num_classes=facts.num_classes)
        if self.guidance.cfg_scale != 1 and not self.conditioner.has_null:
            raise UserError(
                f"guidance.cfg_scale={self.guidance.cfg_scale} needs a null condition and conditioner "
                f"'{config.conditioner.name}' as configured trains none: set guidance.cfg_scale=1, or train a class "
                "conditioner with label_drop above 0"
            )
        if self.classifies and (self.conditioner.has_null or "label" not in self.conditioner.spec.parts):
            raise UserError(
                "loss 'classification' needs the label of every image: set conditioner.name='class' and "
                "conditioner.label_drop=0"
            )
        model = SCHEMA["model"].constructor("model", config.model)
        if getattr(model, "classifies", False) != self.classifies:
            raise UserError(
                f"model '{config.model.name}' and loss '{config.loss.name}' do not fit: loss 'classification' trains a "
                "noisy_classifier, the other losses train the other models"
            )
        self.first_stage = as_trained(self.build("autoencoder"))
        if self.sample.transform == "codebook" and not hasattr(type(self.first_stage.abstract()), "codebook"):
            raise UserError(
                f"sample.transform='codebook': autoencoder '{config.autoencoder.name}' has no codebook; "
                "set sample.transform='none'"
            )

    def check_alignment(self) -> None:
        """Raises a `UserError` if the model, the loss or the data cannot be aligned with features."""
        name = f"alignment '{self.config.alignment.name}'"
        if not self.config.model.get("repa_depth", 0):
            raise UserError(
                f"{name} needs a model with a projector: take model 'dit' and set model.repa_depth, as to 8"
            )
        if getattr(self.loss, "learned_uncertainty", False):
            raise UserError(f"{name} does not go with loss.learned_uncertainty: set it False")
        if self.data.flip:
            raise UserError(f"{name} is given features of the images as they are: set data.flip=False")

    def build(self, section: str, **context: Any) -> Any:
        """Builds what a section names."""
        return SCHEMA[section].build(section, self.config[section], **context)

    @property
    def classifies(self) -> bool:
        """Whether the run trains a classifier of noisy data in place of a diffusion model."""
        return isinstance(self.loss, ClassificationLoss)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of what the backbone sees."""
        return self.first_stage.abstract().latent_shape(self.data.image_size, self.data.channels)

    @cached_property
    def abstract_model(self) -> Any:
        """What `init_model` gives, with shapes in place of arrays."""
        return jax.eval_shape(self.init_model)

    @property
    def partition_rules(self) -> Any:
        """How the backbone's parameters split over the mesh."""
        return getattr(SCHEMA["model"].constructor("model", self.config.model), "partition_rules", ())

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one forward pass of one image."""
        return backbone_macs(jax.eval_shape(self.init_backbone), self.latent_shape, self.conditioner.spec)

    def init_model(self) -> Any:
        """What is trained: the backbone, and with it the condition's encoder and what the loss learns for itself."""
        model = self.init_backbone()
        encoder = self.conditioner.encoder(nnx.Rngs(keys.purpose_key(self.train.seed, "init_encoder")))
        if encoder is not None:
            model = Conditioned(model, encoder)
        return LearnedUncertainty(model) if getattr(self.loss, "learned_uncertainty", False) else model

    def init_backbone(self) -> Any:
        """The backbone at initialisation, a function of the config and `train.seed`."""
        return self.build(
            "model",
            input_shape=self.latent_shape,
            out_channels=self.prediction.output_channels(self.latent_shape[-1]),
            conditioning=self.conditioner.spec,
            num_classes=self.facts.num_classes,
            rngs=nnx.Rngs(keys.purpose_key(self.train.seed, "init")),
        )

    def load_first_stage(self) -> Any:
        """The first stage with its weights, ready to be an argument of compiled functions.

        Raises:
          UserError: weights that cannot be read, or others than those that made the latents of a cache.
        """
        first_stage = self.first_stage.build(load_first_stage, self.train.seed)
        if self.facts.encoder is not None:
            check_encoder(first_stage, self.data.image_size, self.facts.encoder, self.data.name)
        return first_stage

    def training_loss(
        self,
        model: Any,
        x0: jax.Array,
        cond: Any,
        step: jax.Array,
        index: jax.Array,
        history: LossHistory | None,
        features: jax.Array | None = None,
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The loss of a batch.

        Args:
          model: the network.
          x0: [B, h, w, c] latents.
          cond: their conditions.
          step: the training step.
          index: [B] rows of the global batch.
          history: what the timestep sampler remembers; None draws by the loss's own law.
          features: [B, N, Z] patch features of the images, for an alignment.

        Returns:
          [B] losses, and the [B] diagnostics of the loss; with a timestep sampler also `unweighted`.

        Raises:
          UserError: an alignment without features.
        """
        key = keys.purpose_key(self.train.seed, "loss", step)
        sampled = self.timesteps is not None and history is not None
        if not sampled and self.alignment is None:
            return self.loss(model, self.path, self.prediction, x0, cond, key, index)
        time_key, noise_key = jax.random.split(key)
        if self.timesteps is not None and history is not None:
            time, weight = self.timesteps.draw(history, time_key, index)
        else:
            time, weight = self.loss.draw_time(self.path, time_key, index), jnp.ones(len(index))
        epsilon = keys.normal(noise_key, index, x0.shape[1:])  # [B, h, w, c]
        arguments = (model, self.path, self.prediction, x0, cond, time, epsilon)
        if self.alignment is None:
            loss, aux = self.loss.at(*arguments)
        elif features is None:
            raise UserError(f"alignment '{self.config.alignment.name}' needs batches with 'features' [B, N, Z]")
        else:
            loss, aux = self.alignment.at(self.loss, *arguments, features)
        return weight * loss, {**aux, "unweighted": loss} if sampled else aux

    def transforms(self, first_stage: Any) -> tuple[Transform, ...]:
        """The corrections of the predicted data that `sample.transform` names, as `diffusion.denoiser` takes them."""
        match self.sample.transform:
            case "clip":
                return (clip,)
            case "dynamic_threshold":
                return (dynamic_threshold(self.sample.quantile),)
            case "codebook":
                return (snap_to_codebook(first_stage.codebook),)
        return ()

    def train_flops_per_image(self) -> float:
        """FLOPs of forward and backward pass through the backbone, per image; a multiply-add is two."""
        return 3 * 2 * self.macs
