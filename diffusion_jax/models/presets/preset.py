"""What a published model is made of."""

import dataclasses
from typing import Any, NamedTuple

import jax

from diffusion_jax.models.backbones import abstract_backbone, backbone_macs, make_backbone
from diffusion_jax.models.conditioning.encoders import Backbone
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, ConditioningSpec
from diffusion_jax.schema import Options


class Counts(NamedTuple):
    """The size of a model.

    Attributes:
      parameters: their number.
      macs: multiply-adds of a forward pass of one image; of a first stage, of encoding and decoding it.
      tokens: length of the longest sequence that is attended to; 0 without attention.
    """

    parameters: int
    macs: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Preset:
    """A backbone as a paper or release describes it.

    Attributes:
      backbone: one of `BACKBONES`.
      options: its own options, those of the config section `model`.
      input_shape: (H, W, C) of x_t in the published experiment.
      out_channels: channels of the output.
      conditioning: what it is told.
      published: its number of parameters as printed in the paper, "675 M"; empty if none is.
    """

    backbone: str
    options: Options
    input_shape: tuple[int, int, int]
    out_channels: int
    conditioning: ConditioningSpec = UNCONDITIONAL
    published: str = ""

    def section(self) -> Options:
        """The `model` section of a config."""
        return {"name": self.backbone, **self.options}

    def make(self, key: jax.Array, **options: Any) -> Backbone:
        """The model at initialisation.

        Args:
          key: decides the weights.
          **options: replace those of the preset.

        Raises:
          UserError: as the constructor does.
        """
        return make_backbone(
            self.backbone,
            key,
            input_shape=self.input_shape,
            out_channels=self.out_channels,
            conditioning=self.conditioning,
            **{**self.options, **options},
        )

    def abstract(self) -> Backbone:
        """The model with shapes in place of arrays."""
        return abstract_backbone(
            self.backbone,
            input_shape=self.input_shape,
            out_channels=self.out_channels,
            conditioning=self.conditioning,
            **self.options,
        )

    def count(self) -> Counts:
        """The size of the model, counted from shapes in up to some seconds; `COUNTS` has it at once."""
        model = self.abstract()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
        return Counts(parameters, backbone_macs(model, self.input_shape, self.conditioning), model.sequence_length)
