"""Evaluation: feature extractors, statistics of features, and metrics that state what they depend on."""

from diffusion_jax.imports import lazy_names

__getattr__, __all__ = lazy_names(
    {
        "FeatureStatistics": "diffusion_jax.evaluation.metrics.feature_statistics",
        "InceptionScore": "diffusion_jax.evaluation.metrics.inception_score",
        "InceptionV3": "diffusion_jax.evaluation.networks.inception",
        "KernelDistance": "diffusion_jax.evaluation.metrics.kid",
        "PrecisionRecall": "diffusion_jax.evaluation.metrics.precision_recall",
        "clip_distance": "diffusion_jax.evaluation.metrics.kid",
        "frechet_distance": "diffusion_jax.evaluation.metrics.frechet",
        "inception_score": "diffusion_jax.evaluation.metrics.inception_score",
        "kernel_distance": "diffusion_jax.evaluation.metrics.kid",
        "precision_recall": "diffusion_jax.evaluation.metrics.precision_recall",
    }
)
