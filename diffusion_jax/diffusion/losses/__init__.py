"""Training objectives."""

from collections.abc import Callable

from diffusion_jax.diffusion.losses.base import Loss
from diffusion_jax.diffusion.losses.simple import SimpleLoss
from diffusion_jax.diffusion.losses.variational import HybridLoss, VLBLoss

LOSSES: dict[str, Callable[..., Loss]] = {
    "simple": SimpleLoss,
    "hybrid": HybridLoss,
    "vlb": VLBLoss,
}

__all__ = ["LOSSES", "HybridLoss", "Loss", "SimpleLoss", "VLBLoss"]
