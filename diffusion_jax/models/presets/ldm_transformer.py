"""The LDM-Transformers (arXiv 2212.14678), whose paper prints no sizes: each preset is one way to read it.

The UNet they replace has 395 M parameters and takes 57 GMAC. A ViT of 32 equal blocks over 256 patches can match one
of the two: `ldm8-transformer` matches the parameters at the width of ViT-L, `-395m` to 0.1 %, and `-flops` the compute.
"""

from collections.abc import Mapping

from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.presets.preset import Preset


def _ldm_transformer(width: int, heads: int, depth: int = 16) -> Preset:
    options = {"depth": depth, "width": width, "heads": heads, "patch_size": 2}
    return Preset("ldm_transformer", options, (32, 32, 4), 4, ConditioningSpec(num_classes=1000, null_class=True))


LDM_TRANSFORMER_PRESETS: Mapping[str, Preset] = {
    "ldm8-transformer": _ldm_transformer(1024, 16),
    "ldm8-transformer-395m": _ldm_transformer(1008, 14),
    "ldm8-transformer-mid": _ldm_transformer(896, 14),
    "ldm8-transformer-flops": _ldm_transformer(768, 12),
    "ldm8-transformer-small": _ldm_transformer(384, 6, depth=6),
}
"""Models on the f = 8 latents of 256×256 images; `-small` is for searches."""
