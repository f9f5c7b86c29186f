"""U-ViT as released (arXiv 2209.12152) and IU-ViT (arXiv 2212.13771, table of settings)."""

from collections.abc import Mapping

from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec
from diffusion_jax.models.presets.preset import Preset
from diffusion_jax.schema import Options

_SMALL = {"depth": 13, "width": 512, "heads": 8}
_CELEBA128 = {"depth": 17, "width": 1408, "heads": 22}
_CHURCH = {"depth": 17, "width": 1536, "heads": 24}
_CHURCH_WIDE = {"depth": 17, "width": 2048, "heads": 32}
_TEXT = {"depth": 17, "width": 1024, "heads": 16}
_T5 = ConditioningSpec(token_length=256, token_width=1024)


def _pixels(
    backbone: str, side: int, patch_size: int, size: Options, published: str, spec: ConditioningSpec = UNCONDITIONAL
) -> Preset:
    return Preset(backbone, {**size, "patch_size": patch_size}, (side, side, 3), 3, spec, published)


UVIT_PRESETS: Mapping[str, Preset] = {
    "uvit-cifar10": _pixels("uvit", 32, 2, _SMALL, "44 M"),
    "uvit-celeba64": _pixels("uvit", 64, 4, _SMALL, "44 M"),
    "iuvit-cifar10": _pixels("iuvit", 32, 2, _SMALL, "45 M"),
    "iuvit-celeba64": _pixels("iuvit", 64, 4, _SMALL, "45 M"),
    "iuvit-celeba128": _pixels("iuvit", 128, 8, _CELEBA128, "442 M"),
    "iuvit-lsun-church256": _pixels("iuvit", 256, 16, _CHURCH, "527 M"),
    "iuvit-lsun-church256-wide": _pixels("iuvit", 256, 16, _CHURCH_WIDE, "935 M"),
    "iuvit-lsun-church256-patch8": _pixels("iuvit", 256, 8, _CHURCH, "527 M"),
    "iuvit-text64": _pixels("iuvit", 64, 4, _TEXT, "307 M", _T5),
}
"""All models whose sizes are known; widths, and heads but for text, follow from the published parameter counts."""
