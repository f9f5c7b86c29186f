"""Training objectives."""

from collections.abc import Callable

from diffusion_jax.diffusion.losses.alignment import RepresentationAlignment
from diffusion_jax.diffusion.losses.base import Loss, LossBase
from diffusion_jax.diffusion.losses.classification import ClassificationLoss
from diffusion_jax.diffusion.losses.simple import SimpleLoss
from diffusion_jax.diffusion.losses.uncertainty import LearnedUncertainty
from diffusion_jax.diffusion.losses.variational import HybridLoss, VLBLoss
from diffusion_jax.diffusion.losses.weighted import EDMLoss, FlowMatchingLoss, MinSNRLoss, P2Loss, ScoreLoss

LOSSES: dict[str, Callable[..., Loss]] = {
    "simple": SimpleLoss,
    "hybrid": HybridLoss,
    "vlb": VLBLoss,
    "min_snr": MinSNRLoss,
    "p2": P2Loss,
    "score": ScoreLoss,
    "edm": EDMLoss,
    "flow_matching": FlowMatchingLoss,
    "classification": ClassificationLoss,
}

__all__ = [
    "LOSSES",
    "ClassificationLoss",
    "EDMLoss",
    "FlowMatchingLoss",
    "HybridLoss",
    "LearnedUncertainty",
    "Loss",
    "LossBase",
    "MinSNRLoss",
    "P2Loss",
    "RepresentationAlignment",
    "ScoreLoss",
    "SimpleLoss",
    "VLBLoss",
]
