"""The published models by name: `PRESETS["dit-xl/2"]`."""

from collections.abc import Mapping

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.models.presets.ascend import ASCEND_PRESETS
from diffusion_jax.models.presets.dit import DIT_PRESETS
from diffusion_jax.models.presets.ldm_transformer import LDM_TRANSFORMER_PRESETS
from diffusion_jax.models.presets.ldm_unet import LDM_UNET_PRESETS
from diffusion_jax.models.presets.pixel_unet import PIXEL_UNET_PRESETS
from diffusion_jax.models.presets.preset import Preset
from diffusion_jax.models.presets.uvit import UVIT_PRESETS

PRESETS: Mapping[str, Preset] = {
    **ASCEND_PRESETS,
    **DIT_PRESETS,
    **LDM_TRANSFORMER_PRESETS,
    **LDM_UNET_PRESETS,
    **PIXEL_UNET_PRESETS,
    **UVIT_PRESETS,
}
"""Every preset; the names are lower case."""


def preset(name: str) -> Preset:
    """The published model of this name.

    Args:
      name: a key of `PRESETS`.

    Returns:
      The preset; `preset(name).section()` is the `model` section of a config.

    Raises:
      UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"no published model '{name}'{did_you_mean(name, PRESETS)}; see `diffusion-jax models`")
    return PRESETS[name]
