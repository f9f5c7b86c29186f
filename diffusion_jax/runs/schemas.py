"""The config sections of runs that train a diffusion model or a classifier of noisy data."""

from collections.abc import Callable, Mapping

from flax import nnx

from diffusion_jax.config import Schema
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.importance_sampling import LossSecondMoment
from diffusion_jax.diffusion.losses import LOSSES, ClassificationLoss, RepresentationAlignment
from diffusion_jax.diffusion.paths import PATHS
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.evaluation.settings import EvaluateConfig
from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES
from diffusion_jax.models.backbones import BACKBONES
from diffusion_jax.models.conditioning.conditioners import CONDITIONERS, Conditioner
from diffusion_jax.models.unet.noisy_classifier import NoisyClassifier
from diffusion_jax.schema import Section
from diffusion_jax.sections import DATA, EMA, MESH, NO_KEYS, OPTIMIZER, TRAIN, SampleConfig, kind_section


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


# Of the `model`: what follows from other sections.
MODEL_CONTEXT = frozenset({"input_shape", "out_channels", "conditioning", "num_classes", "rngs"})
# What both kinds share.
_SHARED: Schema = {
    "data": DATA,
    "conditioner": Section(CONDITIONERS, frozenset({"num_classes"}), importable=Conditioner),
    "autoencoder": Section(FIRST_STAGES),
}

DIFFUSION_SCHEMA: Schema = {
    "kind": kind_section("diffusion"),
    **_SHARED,
    "model": Section(BACKBONES, MODEL_CONTEXT, importable=nnx.Module, free=frozenset({"remat"})),
    "path": Section(PATHS),
    "prediction": Section(Prediction),
    "loss": Section({name: loss for name, loss in LOSSES.items() if loss is not ClassificationLoss}),
    "timesteps": Section(TIMESTEPS, default="uniform"),
    "alignment": Section(ALIGNMENTS, default="none"),
    "optimizer": OPTIMIZER,
    "ema": EMA,
    "train": TRAIN,
    "sampler": Section(SAMPLERS, identity=NO_KEYS),
    "guidance": Section(GUIDANCES, identity=NO_KEYS),
    "sample": Section(SampleConfig, identity=NO_KEYS),
    "evaluate": Section(EvaluateConfig, identity=NO_KEYS),
    "mesh": MESH,
}
"""Every section of a config that trains a diffusion model."""

CLASSIFIER_SCHEMA: Schema = {
    "kind": kind_section("classifier"),
    **_SHARED,
    "model": Section(
        {"noisy_classifier": NoisyClassifier}, MODEL_CONTEXT, importable=nnx.Module, free=frozenset({"remat"})
    ),
    "path": Section(PATHS),
    "prediction": Section(Prediction),
    "loss": Section({"classification": ClassificationLoss}, default="classification"),
    "timesteps": Section(TIMESTEPS, default="uniform"),
    "optimizer": OPTIMIZER,
    "ema": EMA,
    "train": TRAIN,
    "mesh": MESH,
}
"""Every section of a config that trains a classifier of noisy data, which draws no samples of its own."""
