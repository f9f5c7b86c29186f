"""From a config to the parts it names: the one place where data, models and diffusion meet."""

from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from diffusion_jax import keys
from diffusion_jax.autoencoding.fingerprint import check_encoder
from diffusion_jax.config import Schema
from diffusion_jax.data import DataConfig
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.importance_sampling import LossHistory, LossSecondMoment
from diffusion_jax.diffusion.losses import LearnedUncertainty, LossBase, RepresentationAlignment
from diffusion_jax.diffusion.paths import DiscretePath, Path
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import Sampler, check_sampling
from diffusion_jax.diffusion.transforms import Transform, clip, dynamic_threshold, snap_to_codebook
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.settings import EvaluateConfig
from diffusion_jax.models.autoencoder.first_stage import FirstStage, Identity, KLConfig, VQConfig
from diffusion_jax.models.backbones import backbone_macs
from diffusion_jax.models.conditioning.conditioners import Conditioner
from diffusion_jax.models.conditioning.encoders import Encoder, conditioned
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.optim.ema_profiles import EMAProfile, PowerEMA
from diffusion_jax.parallel.create import sharded_shapes
from diffusion_jax.parallel.mesh import MeshConfig
from diffusion_jax.parallel.partition import PartitionRules
from diffusion_jax.records import check_fields
from diffusion_jax.runs.schemas import CLASSIFIER_SCHEMA, DIFFUSION_SCHEMA
from diffusion_jax.runs.trained_first_stage import as_trained, load_first_stage
from diffusion_jax.sections import SampleConfig, TrainConfig


class System:
    """The parts that the training of a diffusion model and of a classifier share, checked against each other.

    Args:
      config: a complete config of the schema of the class.
      facts: what is known of the data.

    Raises:
      UserError: parts that do not fit together, or values out of range.
    """

    schema: ClassVar[Schema]

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts):
        self.config = config
        self.facts = facts
        self.train: TrainConfig = self.build("train")
        self.data: DataConfig = self.build("data")
        self.mesh_config: MeshConfig = self.build("mesh")
        self.path: Path = self.build("path")
        self.prediction: Prediction = self.build("prediction")
        self.loss: LossBase = self.build("loss")
        self.loss.check(self.path, self.prediction)
        self.timesteps: LossSecondMoment | None = self.build("timesteps")
        if self.timesteps and self.path.chain_length is None:
            raise UserError(
                f"timesteps '{config.timesteps.name}' counts losses by timestep; path '{config.path.name}' has none: "
                "use a discrete path, or timesteps 'uniform'"
            )
        self.alignment: RepresentationAlignment | None = None
        self.ema: EMAProfile = self.build("ema", batch_size=self.train.batch_size)
        self.tracks = tuple(PowerEMA(sigma_rel=width) for width in self.train.ema_widths)
        self.conditioner: Conditioner = self.build("conditioner", num_classes=facts.num_classes)
        self.autoencoder: Identity | KLConfig | VQConfig = as_trained(self.build("autoencoder"))

    @classmethod
    def reads(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """The fields that a config's conditioner reads of a record beside the image or its latents."""
        constructor = cls.schema["conditioner"].constructor("conditioner", config["conditioner"])
        return getattr(constructor, "reads", ())

    def build(self, section: str, **context: Any) -> Any:
        """Builds what a section names."""
        return self.schema[section].build(section, self.config[section], **context)

    def check_data(self) -> None:
        """Raises a `UserError` unless the records of the data hold what the run reads of them."""
        spec = self.facts.record_spec
        if spec:
            name = f"conditioner '{self.config.conditioner.name}'"
            check_fields(name, type(self.conditioner).reads, spec, f"data '{self.config.data.name}'")
            if self.alignment:
                name = f"alignment '{self.config.alignment.name}'"
                check_fields(name, ("features",), spec, f"data '{self.config.data.name}'")

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of what the backbone sees."""
        return self.autoencoder.abstract().latent_shape(self.data.image_size, self.data.channels)

    @cached_property
    def abstract_model(self) -> Any:
        """What `init_model` gives, with shapes in place of arrays."""
        return jax.eval_shape(self.init_model)

    def sharded_model(self, mesh: Mesh) -> Any:
        """What `init_model` gives, with a sharded `jax.ShapeDtypeStruct` for each array."""
        return sharded_shapes(lambda: {"model": self.init_model()}, self.partition_rules, mesh)["model"]

    @property
    def partition_rules(self) -> PartitionRules:
        """How the backbone's parameters split over the mesh."""
        return getattr(self.schema["model"].constructor("model", self.config.model), "partition_rules", ())

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one forward pass of one image."""
        return backbone_macs(jax.eval_shape(self.init_backbone), self.latent_shape, self.conditioner.spec)

    def init_model(self) -> Any:
        """What is trained: the backbone, and with it the condition's encoder and what the loss learns for itself."""
        encoder = self.conditioner.encoder(nnx.Rngs(keys.purpose_key(self.train.seed, "init_encoder")))
        model = self.init_backbone(encoder)
        return LearnedUncertainty(model) if getattr(self.loss, "learned_uncertainty", False) else model

    def init_backbone(self, encoder: Encoder | None = None) -> Any:
        """The backbone at initialisation, a function of the config and `train.seed`, behind an encoder if given."""
        make = partial(
            self.build,
            "model",
            out_channels=self.prediction.output_channels(self.latent_shape[-1]),
            num_classes=self.facts.num_classes,
            rngs=nnx.Rngs(keys.purpose_key(self.train.seed, "init")),
        )
        return conditioned(make, self.latent_shape, self.conditioner.spec, encoder)

    def initial_history(self) -> LossHistory | None:
        """What the timestep sampler remembers before the first step; None for uniform draws."""
        if self.timesteps is None:
            return None
        assert isinstance(self.path, DiscretePath), "checked when the system was built"
        return self.timesteps.init(self.path)

    def load_frozen(self) -> Frozen:
        """The frozen networks with their weights, ready to be an argument of compiled functions.

        Raises:
          UserError: weights that cannot be read, or others than those that made the latents of a cache.
        """
        first_stage: FirstStage = self.autoencoder.build(load_first_stage, self.train.seed)
        if self.facts.encoder is not None:
            check_encoder(first_stage, self.data.image_size, self.facts.encoder, self.data.name)
        return Frozen(first_stage=first_stage, conditioner=self.conditioner.load_networks())

    def abstract_frozen(self) -> Frozen:
        """What `load_frozen` gives, with shapes in place of arrays; no weights are read."""
        return Frozen(first_stage=self.autoencoder.abstract(), conditioner=self.conditioner.abstract_networks())

    def train_flops_per_image(self) -> float:
        """FLOPs of forward and backward pass through the backbone, per image; a multiply-add is two."""
        return 3 * 2 * self.macs


class DiffusionSystem(System):
    """The parts of a run that trains a diffusion model, and of what draws its samples; see `System`."""

    schema = DIFFUSION_SCHEMA

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts):
        super().__init__(config, facts)
        self.sample: SampleConfig = self.build("sample")
        self.evaluate: EvaluateConfig = self.build("evaluate")
        self.alignment = self.build("alignment")
        if self.alignment:
            self.check_alignment()
        self.sampler: Sampler = self.build("sampler")
        self.guidance: ClassifierFreeGuidance = self.build("guidance")
        self.check_sampling()
        self.check_data()

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

    def check_sampling(self) -> None:
        """Raises a `UserError` if no samples can be drawn as the config says."""
        config = self.config
        check_sampling(self.sampler, self.path, self.prediction, corrected=self.sample.transform != "none")
        first, last = self.sampler.times(self.path)[[0, -1]]
        if first < last:
            raise UserError(
                f"sampler '{config.sampler.name}' walks from data to noise and samples are drawn from noise: take "
                "another for sampler.name, such as 'ddim'"
            )
        if self.guidance.cfg_scale != 1 and not self.conditioner.has_null:
            raise UserError(
                f"guidance.cfg_scale={self.guidance.cfg_scale} needs a null condition and conditioner "
                f"'{config.conditioner.name}' as configured trains none: set guidance.cfg_scale=1, or train a class "
                "conditioner with label_drop above 0"
            )
        if self.sample.transform == "codebook" and not isinstance(self.autoencoder, VQConfig):
            raise UserError(
                f"sample.transform='codebook': autoencoder '{config.autoencoder.name}' has no codebook; "
                "set sample.transform='none'"
            )

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


class ClassifierSystem(System):
    """The parts of a run that trains a classifier of noisy data, to guide a diffusion model by; see `System`."""

    schema = CLASSIFIER_SCHEMA

    def __init__(self, config: ml_collections.ConfigDict, facts: DatasetFacts):
        super().__init__(config, facts)
        if self.conditioner.has_null or "label" not in self.conditioner.spec.parts:
            raise UserError(
                "a classifier needs the label of every image: set conditioner.name='class' and conditioner.label_drop=0"
            )
        for name in ("sample_every", "eval_every"):
            if getattr(self.train, name) is not None:
                raise UserError(
                    f"train.{name}={getattr(self.train, name)}: a classifier has no samples; set it to None"
                )
        self.check_data()
