"""The kinds of training by the kind of run."""

from collections.abc import Callable, Mapping

from diffusion_jax.training.autoencoder_stage import AutoencoderStage
from diffusion_jax.training.diffusion_stage import ClassifierStage, DiffusionStage
from diffusion_jax.training.stage import Stage

STAGES: Mapping[str, Callable[..., Stage]] = {
    "diffusion": DiffusionStage,
    "classifier": ClassifierStage,
    "first_stage": AutoencoderStage,
}
"""Stages by the name of the kind of run; each is called with a complete config and the facts of the data."""
