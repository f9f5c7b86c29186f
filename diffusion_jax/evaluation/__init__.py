"""Evaluation: feature extractors, statistics of features, and metrics that state what they depend on."""

from diffusion_jax.evaluation.frechet import frechet_distance
from diffusion_jax.evaluation.inception import InceptionV3
from diffusion_jax.evaluation.inception_score import InceptionScore, inception_score
from diffusion_jax.evaluation.kid import KernelDistance, clip_distance, kernel_distance
from diffusion_jax.evaluation.precision_recall import PrecisionRecall, precision_recall
from diffusion_jax.evaluation.statistics import FeatureStatistics

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
