"""The DiT models (arXiv 2212.09748, tables 1 and 4; §3.2) and those that share the architecture: SiT, LightningDiT."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.dit.dit import MODERN, dit_config
from diffusion_jax.models.presets.preset import Preset
from diffusion_jax.schema import Options

_IMAGENET = ConditioningSpec(num_classes=1000, null_class=True)

_MILLIONS = {
    "S/8": 33, "S/4": 33, "S/2": 33, "B/8": 131, "B/4": 130, "B/2": 130,
    "L/8": 459, "L/4": 458, "L/2": 458, "XL/8": 676, "XL/4": 675, "XL/2": 675,
}  # fmt: skip

_LIGHTNING: Options = {"norm": "rms", "mlp": "swiglu", "rope": True}


def _dit(variant: str, side: int, published: str, **options: Any) -> Preset:
    return Preset("dit", {**dit_config(variant), **options}, (side, side, 4), 8, _IMAGENET, published)


def _velocity(variant: str, published: str, latent: tuple[int, int, int] = (32, 32, 4), **options: Any) -> Preset:
    """A velocity head has as many channels as the latent."""
    return Preset("dit", {**dit_config(variant), **options}, latent, latent[-1], _IMAGENET, published)


DIT_PRESETS: Mapping[str, Preset] = {
    **{f"dit-{variant.lower()}": _dit(variant, 32, f"{millions} M") for variant, millions in _MILLIONS.items()},
    "dit-xl/2-512": _dit("XL/2", 64, "675 M"),
    "dit-xl/2-adaln": _dit("XL/2", 32, "600.5 M", block="adaln"),
    "dit-xl/2-cross-attention": _dit("XL/2", 32, "598.0 M", block="cross_attention"),
    "dit-xl/2-in-context": _dit("XL/2", 32, "449.2 M", block="in_context"),
    **{f"dit-modern-{size.lower()}/2": _velocity(f"{size}/2", "", **MODERN) for size in ("S", "B", "L", "XL")},
    "sit-s/2": _velocity("S/2", "33 M"),
    "sit-b/2": _velocity("B/2", "130 M"),
    "sit-l/2": _velocity("L/2", "458 M"),
    "sit-xl/2": _velocity("XL/2", "675 M"),
    "sit-xl/2-repa": _velocity("XL/2", "675 M", repa_depth=8, repa_width=768),
    "lightningdit-xl/2": _velocity("XL/2", "", **_LIGHTNING),
    "lightningdit-xl/1": _velocity("XL/1", "675 M", (16, 16, 32), **_LIGHTNING),
}
"""All models of the paper on the latents of 256×256 (and 512×512) images, with the block designs it compares.

`dit-modern` is this library's own choice (`MODERN`). SiT and REPA are DiT with a velocity head (arXiv 2401.08740,
2410.06940), the projector of REPA apart; LightningDiT (arXiv 2501.01423) is on the latents of VA-VAE (/1) or, as in its
ablation, of sd-vae (/2). These three tell the network t ∈ [0, 1] without scaling.
"""
