"""Weights of other code bases, in and out."""

from diffusion_jax.interop.backbones import load_backbone

__all__ = ["load_backbone"]
