"""Evaluation: feature extractors, statistics of features, and metrics that state what they depend on."""

from diffusion_jax.evaluation.frechet import frechet_distance
from diffusion_jax.evaluation.statistics import FeatureStatistics

__all__ = ["FeatureStatistics", "frechet_distance"]
