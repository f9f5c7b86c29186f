"""The UNets on pixels: DDPM (arXiv 2006.11239), IDDPM (arXiv 2102.09672) and ADM (arXiv 2105.05233)."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec
from diffusion_jax.models.presets.preset import Preset

_IMAGENET = ConditioningSpec(num_classes=1000)


def _ddpm(side: int, channel_mult: tuple[int, ...], published: str) -> Preset:
    options = {
        "model_channels": 128,
        "channel_mult": channel_mult,
        "attention_resolutions": (side // 16,),
        "num_heads": 1,
        "downsample_padding": "after",
        "norm_eps": 1e-6,
        "freq_denominator": 63,
    }
    return Preset("unet", options, (side, side, 3), 3, published=published)


def _iddpm(side: int, channel_mult: tuple[int, ...], published: str) -> Preset:
    options = {
        "model_channels": 128,
        "channel_mult": channel_mult,
        "num_res_blocks": 3,
        "attention_resolutions": (side // 16, side // 8),
        "num_heads": 4,
        "use_scale_shift_norm": True,
    }
    return Preset("unet", options, (side, side, 3), 6, published=published)


def _adm(
    side: int,
    channel_mult: tuple[float, ...],
    published: str,
    conditioning: ConditioningSpec = _IMAGENET,
    **options: Any,
) -> Preset:
    options = {
        "model_channels": 256,
        "channel_mult": channel_mult,
        "attention_resolutions": (side // 32, side // 16, side // 8),
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        **({} if "num_heads" in options else {"num_head_channels": 64}),
        **options,
    }
    return Preset("unet", options, (side, side, 3), 6, conditioning, published)


PIXEL_UNET_PRESETS: Mapping[str, Preset] = {
    "ddpm-cifar10": _ddpm(32, (1, 2, 2, 2), "35.7 M"),
    "ddpm-256": _ddpm(256, (1, 1, 2, 2, 4, 4), "114 M"),
    "iddpm-cifar10": _iddpm(32, (1, 2, 2, 2), "52.5 M"),
    "iddpm-imagenet64": _iddpm(64, (1, 2, 3, 4), "120 M"),
    "adm-imagenet64": _adm(64, (1, 2, 3, 4), "296 M", model_channels=192, num_res_blocks=3),
    "adm-imagenet128": _adm(128, (1, 1, 2, 3, 4), "422 M", num_heads=4),
    "adm-imagenet256": _adm(256, (1, 1, 2, 2, 4, 4), "554 M"),
    "adm-imagenet256-uncond": _adm(256, (1, 1, 2, 2, 4, 4), "", UNCONDITIONAL),
    "adm-imagenet512": _adm(512, (0.5, 1, 1, 2, 2, 4, 4), "559 M"),
}
"""The official weights of `adm-imagenet64` order q, k and v differently (`qkv_first` of the name table)."""
