"""The DiT models (arXiv 2212.09748, tables 1 and 4)."""

from collections.abc import Mapping

from diffusion_jax.models.conditioning import ConditioningSpec
from diffusion_jax.models.dit import dit_config
from diffusion_jax.models.presets.preset import Preset

_IMAGENET = ConditioningSpec(num_classes=1000, null_class=True)

_MILLIONS = {
    "S/8": 33, "S/4": 33, "S/2": 33, "B/8": 131, "B/4": 130, "B/2": 130,
    "L/8": 459, "L/4": 458, "L/2": 458, "XL/8": 676, "XL/4": 675, "XL/2": 675,
}  # fmt: skip


def _dit(variant: str, side: int) -> Preset:
    return Preset("dit", dit_config(variant), (side, side, 4), 8, _IMAGENET, f"{_MILLIONS[variant]} M")


DIT_PRESETS: Mapping[str, Preset] = {
    **{f"dit-{variant.lower()}": _dit(variant, 32) for variant in _MILLIONS},
    "dit-xl/2-512": _dit("XL/2", 64),
}
"""All models of the paper, on the latents of 256×256 (and 512×512) images."""
