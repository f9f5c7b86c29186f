"""The backbones, by the `name` of the config section `model`.

A backbone is an NNX module whose constructor takes, beside its own options, `input_shape` (H, W, C), `out_channels`,
`conditioning` (a `ConditioningSpec`; parts it has no use for raise a `UserError`) and `rngs`. It is called as
`backbone(x [B, H, W, C], timestep [B], cond) -> [B, H, W, out_channels] float32`, has the class attribute
`partition_rules`, and `sequence_length`, the length of its longest sequence. An image among the conditions is no
business of a backbone: `conditioned` builds it for the channels of both and concatenates them.

A backbone outside this library goes by "package.module:Class" (docs/new_backbone.md).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.ascend.ascend import ASCEND
from diffusion_jax.models.conditioning.encoders import Backbone, conditioned
from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.dit.dit import DiT
from diffusion_jax.models.dit.ldm_transformer import LDMTransformer
from diffusion_jax.models.macs import count_macs
from diffusion_jax.models.unet.unet import UNet
from diffusion_jax.models.uvit.iuvit import IUViT
from diffusion_jax.models.uvit.uvit import UViT

BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "ascend": ASCEND,
    "dit": DiT,
    "iuvit": IUViT,
    "ldm_transformer": LDMTransformer,
    "unet": UNet,
    "uvit": UViT,
}


def make_backbone(
    name: str,
    key: jax.Array,
    *,
    input_shape: tuple[int, int, int],
    conditioning: ConditioningSpec,
    **options: Any,
) -> Backbone:
    """A backbone at initialisation; `key` decides its weights, the other arguments are those of `abstract_backbone`."""
    return conditioned(partial(BACKBONES[name], **options, rngs=nnx.Rngs(key)), input_shape, conditioning)


def abstract_backbone(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    out_channels: int,
    conditioning: ConditioningSpec,
    **options: Any,
) -> Backbone:
    """A backbone with shapes in place of arrays: nothing is computed or allocated.

    Args:
      name: one of `BACKBONES`.
      input_shape: (H, W, C) of x_t.
      out_channels: channels of the output.
      conditioning: what the backbone is told.
      **options: its own options.

    Returns:
      The module, its parameters being `jax.ShapeDtypeStruct`s; in a `Conditioned` if it is told an image.

    Raises:
      UserError: as the constructor does.
    """

    def make(key: jax.Array) -> Backbone:
        return make_backbone(
            name, key, input_shape=input_shape, conditioning=conditioning, out_channels=out_channels, **options
        )

    return jax.eval_shape(make, jax.random.key(0))


def backbone_macs(backbone: Backbone, input_shape: tuple[int, int, int], conditioning: ConditioningSpec) -> int:
    """Multiply-adds of one forward pass of one image.

    Args:
      backbone: the module, abstract or not.
      input_shape: (H, W, C) of x_t.
      conditioning: what the backbone is told.

    Returns:
      The count of its matrix products and convolutions.
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    timestep = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = conditioning.example(1, *input_shape[:2])
    return count_macs(lambda backbone, *arguments: backbone(*arguments), backbone, x, timestep, cond)
