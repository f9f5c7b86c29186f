"""Evaluation: feature extractors, statistics of features, and metrics that state what they depend on."""

from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.metrics.frechet import frechet_distance
from diffusion_jax.evaluation.metrics.inception_score import InceptionScore, inception_score
from diffusion_jax.evaluation.metrics.kid import KernelDistance, clip_distance, kernel_distance
from diffusion_jax.evaluation.metrics.precision_recall import PrecisionRecall, precision_recall
from diffusion_jax.evaluation.networks.inception import InceptionV3

__all__ = [
    "FeatureStatistics",
    "InceptionScore",
    "InceptionV3",
    "KernelDistance",
    "PrecisionRecall",
    "clip_distance",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
]
