"""Official weights into any backbone, from a mapping of arrays under the official names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.interop.dit import UNUSED, check_positions, dit_entries
from diffusion_jax.interop.mapping import Entry, load_state_dict
from diffusion_jax.interop.unet import unet_entries
from diffusion_jax.interop.uvit import uvit_entries
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.encoders import Backbone, Conditioned
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec


class OfficialNames(NamedTuple):
    """How a backbone goes by its official names.

    Attributes:
      entries: the name table of a module, abstract or not.
      ignore: shell patterns of official names that hold nothing a module needs.
      check: raises a `UserError` if a state dict is of a model that the module cannot be; gets the module, the state
        dict and what errors call it.
    """

    entries: Callable[[Any], list[Entry]]
    ignore: tuple[str, ...] = ()
    check: Callable[[Any, Mapping[str, np.ndarray], str], None] | None = None


OFFICIAL_NAMES: Mapping[str, OfficialNames] = {
    "dit": OfficialNames(dit_entries, ignore=UNUSED, check=check_positions),
    "unet": OfficialNames(unet_entries),
    "uvit": OfficialNames(uvit_entries),
}
"""The name tables, by backbone."""


def fill_backbone(
    kind: str, module: Backbone, state_dict: Mapping[str, np.ndarray], *, source: str = "state dict"
) -> Backbone:
    """Fills a backbone with official weights.

    Args:
      kind: one of `OFFICIAL_NAMES`.
      module: a backbone of that kind and of the weights' configuration, or its `jax.eval_shape`. Of a `Conditioned`
        the backbone is filled.
      state_dict: arrays under official names, PyTorch layouts.
      source: what errors call the state dict.

    Returns:
      A new module; parameters are float32.

    Raises:
      UserError: a tensor is missing, unexpected or of another shape, or the model is of another kind.
    """
    if isinstance(module, Conditioned):
        backbone = fill_backbone(kind, module.backbone, state_dict, source=source)
        return Conditioned(backbone, module.encoder)
    names = OFFICIAL_NAMES[kind]
    if names.check:
        names.check(module, state_dict, source)
    return load_state_dict(module, state_dict, names.entries(module), ignore=names.ignore, source=source)


def load_backbone(
    kind: str,
    state_dict: Mapping[str, np.ndarray],
    *,
    input_shape: tuple[int, int, int],
    out_channels: int,
    conditioning: ConditioningSpec = UNCONDITIONAL,
    **config: Any,
) -> Backbone:
    """Builds a backbone and fills it with official weights.

    Args:
      kind: the backbone, a `name` of the config section `model`.
      state_dict: arrays under official names, PyTorch layouts.
      input_shape: (H, W, C) of x_t.
      out_channels: channels of the output.
      conditioning: what the model is told.
      **config: the options of the config section `model`.

    Returns:
      The backbone.

    Raises:
      UserError: no such backbone; a tensor is missing, unexpected or of another shape.
    """
    if kind not in OFFICIAL_NAMES:
        raise UserError(f"no official names are known for a backbone '{kind}'{did_you_mean(kind, OFFICIAL_NAMES)}")
    module = abstract_backbone(
        kind, input_shape=input_shape, out_channels=out_channels, conditioning=conditioning, **config
    )
    return fill_backbone(kind, module, state_dict)
