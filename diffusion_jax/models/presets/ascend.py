"""The ASCEND models (arXiv 2212.13771), whose base widths and depths are reconstructed from the parameter counts."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec
from diffusion_jax.models.presets.preset import Preset
from diffusion_jax.schema import Options

_T5 = ConditioningSpec(token_length=256, token_width=1024)


def _ascend(side: int, conditioning: ConditioningSpec = UNCONDITIONAL, published: str = "", **options: Any) -> Preset:
    return Preset("ascend", options, (side, side, 3), 3, conditioning, published)


_T2I: Options = {"model_channels": 256, "channel_mult": (1, 2, 3, 4, 4), "attention_resolutions": (32, 16)}

ASCEND_PRESETS: Mapping[str, Preset] = {
    "ascend-t2i-128": _ascend(128, _T5, "590 M", **_T2I, enc_depths=(2, 2, 6, 6, 2), dec_blocks=(1,) * 5),
    "ascend-t2i-128-adm": _ascend(128, _T5, "590 M", **_T2I, enc_depths=(2,) * 5, dec_blocks=(3,) * 5, skips="block"),
    "ascend-cifar10": _ascend(
        32,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        enc_depths=(4, 4, 4, 4),
        dec_blocks=(2, 2, 2, 2),
        attention_resolutions=(16,),
    ),
    "ascend-cifar10-adm": _ascend(
        32,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        enc_depths=(3, 3, 3, 3),
        dec_blocks=(4, 4, 4, 4),
        skips="block",
        attention_resolutions=(16, 8),
    ),
    "ascend-128": _ascend(
        128,
        model_channels=128,
        channel_mult=(1, 1, 2, 3, 4),
        enc_depths=(2, 2, 2, 6, 2),
        dec_blocks=(1, 1, 1, 1, 1),
        attention_resolutions=(32, 16),
    ),
    "ascend-256": _ascend(
        256,
        model_channels=128,
        channel_mult=(1, 1, 2, 2, 4, 4),
        enc_depths=(2, 2, 2, 2, 6, 2),
        dec_blocks=(1, 1, 1, 1, 1, 1),
        attention_resolutions=(32, 16),
    ),
}
"""Light decoders with one skip per level, and the wiring of ADM (`-adm`), whose decoder outweighs its encoder."""
