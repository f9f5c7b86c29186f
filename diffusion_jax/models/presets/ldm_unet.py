"""The UNets of latent diffusion (arXiv 2112.10752, tables 12-15 and the released configurations)."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec
from diffusion_jax.models.presets.preset import Preset

_CLASS_TOKEN = ConditioningSpec(token_length=1, token_width=512)


def _unet(
    latent: tuple[int, int, int],
    channels: int,
    channel_mult: tuple[int, ...],
    attention_resolutions: tuple[int, ...],
    conditioning: ConditioningSpec = UNCONDITIONAL,
    published: str = "",
    **options: Any,
) -> Preset:
    options = {
        "model_channels": channels,
        "channel_mult": channel_mult,
        "attention_resolutions": attention_resolutions,
        **({} if "num_heads" in options else {"num_head_channels": 32}),
        **options,
    }
    return Preset("unet", options, latent, latent[-1], conditioning, published)


def _image(channels: int) -> ConditioningSpec:
    return ConditioningSpec(image_channels=channels)


_F4, _F8 = (64, 64, 3), (32, 32, 4)  # Latents of 256×256 images.
_UNCONDITIONAL = (224, (1, 2, 3, 4), (8, 4, 2))
_CLASS_F4 = (192, (1, 2, 3, 5), (8, 4, 2))
_SWEEP_F1 = (192, (1, 1, 2, 2, 4, 4), (32, 16, 8))
_SWEEP_F2 = (192, (1, 2, 2, 4, 4), (16, 8, 4))
_SWEEP_F8 = (256, (1, 2, 4), (4, 2, 1))
# Its attention factors name sizes, as in the release, so that only the middle has an attention.
_SPATIAL = (128, (1, 4, 8), (32, 16, 8))

LDM_UNET_PRESETS: Mapping[str, Preset] = {
    "ldm-celebahq256": _unet(_F4, *_UNCONDITIONAL, published="274 M"),
    "ldm-ffhq256": _unet(_F4, *_UNCONDITIONAL, published="274 M"),
    "ldm-lsun-bedroom256": _unet(_F4, *_UNCONDITIONAL, published="274 M"),
    "ldm-lsun-church256": _unet(
        _F8,
        192,
        (1, 2, 2, 4, 4),
        (1, 2, 4, 8),
        num_heads=8,
        use_scale_shift_norm=True,
        resblock_updown=True,
        published="294 M",
    ),
    "ldm-8-imagenet256": _unet(_F8, *_SWEEP_F8, _CLASS_TOKEN, published="395 M"),
    "ldm-4-imagenet256": _unet(_F4, *_CLASS_F4, _CLASS_TOKEN, num_heads=1, published="400 M"),
    "ldm-text2img-1.45b": _unet(
        _F8, 320, (1, 2, 4, 4), (4, 2, 1), ConditioningSpec(token_length=77, token_width=1280), num_heads=8
    ),
    "ldm-text2img256": _unet(_F4, *_CLASS_F4, ConditioningSpec(token_length=77, token_width=640)),
    "ldm-layout2img256": _unet(
        _F4,
        128,
        (1, 2, 3, 4),
        (8, 4, 2),
        ConditioningSpec(token_length=92, token_width=512),
        transformer_depth=3,
    ),
    "ldm-semantic256": _unet(_F4, *_SPATIAL, _image(3), num_heads=8, published="215 M"),
    "ldm-inpainting": _unet(_F4, *_SPATIAL, _image(4), num_heads=8, published="215 M"),
    "ldm-inpainting-big": _unet(
        _F4, 256, (1, 2, 3, 4), (8, 4, 2), _image(4), num_heads=8, resblock_updown=True, published="387 M"
    ),
    "ldm-bsr-sr": _unet(_F4, 160, (1, 2, 2, 4), (16, 8), _image(3)),
    "ldm-sr-169m": _unet(_F4, 160, (1, 2, 4, 4), (8, 4, 2, 1), _image(3), published="169 M"),
    "rdm-768": _unet((48, 48, 16), 448, (1, 2, 3, 4), (4, 2, 1), ConditioningSpec(token_length=20, token_width=768)),
    "ldm-1-sweep-imagenet256": _unet((256, 256, 3), *_SWEEP_F1, _CLASS_TOKEN, published="396 M"),
    "ldm-2-sweep-imagenet256": _unet((128, 128, 2), *_SWEEP_F2, _CLASS_TOKEN, published="391 M"),
    "ldm-16-sweep-imagenet256": _unet((16, 16, 8), *_SWEEP_F8, _CLASS_TOKEN, published="395 M"),
    "ldm-32-sweep-imagenet256": _unet((8, 8, 16), *_SWEEP_F8, _CLASS_TOKEN, published="395 M"),
    "ldm-1-sweep-celebahq256": _unet((256, 256, 3), *_SWEEP_F1, published="270 M"),
    "ldm-2-sweep-celebahq256": _unet((128, 128, 2), *_SWEEP_F2, published="265 M"),
    "ldm-8-sweep-celebahq256": _unet(_F8, *_SWEEP_F8, published="258 M"),
    "ldm-16-sweep-celebahq256": _unet((16, 16, 8), *_SWEEP_F8, published="260 M"),
}
"""The released models and those of the sweep over f.

`ldm-sr-169m` is our reconstruction: the widths that the paper prints count 113.6 M (`ldm-bsr-sr`), not its 169 M. The
models of semantic maps at 512×512 have the UNet of `ldm-semantic256`. The encoder of class labels, 512,000 (LDM-8) or
512,512 (LDM-4, with a null class) parameters more, belongs to the conditioner `class_token`.
"""
