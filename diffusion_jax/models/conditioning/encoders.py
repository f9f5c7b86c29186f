"""A backbone behind its condition: the network that encodes it (τ_θ of arXiv 2112.10752), and the image beside x_t."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.parallel.partition import PyTree

Encoder = Callable[[Conditioning], Conditioning]
Tree = TypeVar("Tree")


class Backbone(Protocol):
    """A network of the noisy image, the time and the condition; an NNX module, described in `models.backbones`."""

    @property
    def sequence_length(self) -> int:
        """Length of its longest sequence."""

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """[B, H, W, C] and [B] to [B, H, W, C_out]."""


class ClassTokens(nnx.Module):
    """Embeds class labels as a sequence of one token (LDM, §4.1 and appendix E.2).

    Args:
      labels: its `num_classes` and `null_class` size the table.
      width: D of the token.
      rngs: initialiser streams; rows ~ N(0, 1), the default of the released code.
    """

    def __init__(self, labels: ConditioningSpec, width: int, *, rngs: nnx.Rngs):
        rows = labels.num_classes + labels.null_class
        self.table = nnx.Embed(rows, width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

    def __call__(self, cond: Conditioning) -> Conditioning:
        """Replaces `label` [B] by `tokens` [B, 1, D] float32."""
        if cond.label is None:
            raise ValueError("a model of classes was called without cond.label")
        return cond._replace(label=None, tokens=self.table(cond.label)[:, None])  # [B, 1, D]


class Conditioned(nnx.Module):
    """A backbone behind what is done to its condition; called like a backbone.

    First comes the encoder, if there is one. Then the image of the condition, if there is one, is concatenated to the
    noisy image: the backbone is built for that many channels and is told the rest.

    Args:
      backbone: what is called in the end, with `image` None.
      encoder: maps the condition of a batch to the one with the image and the parts that the backbone takes.
    """

    def __init__(self, backbone: Backbone, encoder: Encoder | None = None):
        self.backbone = backbone
        self.encoder = encoder

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Calls the backbone: [B, H, W, C] to [B, H, W, C_out]."""
        return self.backbone(*self._inputs(x, timestep, cond))

    def project(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> tuple[jax.Array, jax.Array]:
        """Calls `project` of the backbone: [B, H, W, C] to [B, H, W, C_out] and [B, N, Z]."""
        backbone: Any = self.backbone  # one that has features to align; others are not asked
        return backbone.project(*self._inputs(x, timestep, cond))

    def _inputs(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> tuple:
        if self.encoder is not None:
            cond = self.encoder(cond)
        if cond.image is not None:
            x = jnp.concatenate([x, cond.image.astype(x.dtype)], axis=-1)  # [B, H, W, C + image_channels]
        return x, timestep, cond._replace(image=None)

    @property
    def sequence_length(self) -> int:
        """That of the backbone."""
        return self.backbone.sequence_length


def conditioned(
    make: Callable[..., Backbone],
    input_shape: tuple[int, int, int],
    conditioning: ConditioningSpec,
    encoder: Encoder | None = None,
) -> Backbone:
    """Builds a backbone, in its wrapper where it needs one; every backbone of the library is built by this.

    Args:
      make: makes the backbone from `input_shape` and `conditioning`, given by keyword.
      input_shape: (H, W, C) of x_t.
      conditioning: what the backbone will be given, after the encoder.
      encoder: the network between condition and backbone, if there is one.

    Returns:
      A `Conditioned` if there is an encoder or an image, otherwise the backbone itself.

    Raises:
      UserError: as the constructor of the backbone does.
    """
    backbone = make(input_shape=conditioning.backbone_shape(input_shape), conditioning=conditioning.without_image())
    if encoder is None and not conditioning.image_channels:
        return backbone
    return Conditioned(backbone, encoder)


def with_encoder_of(average: Tree, model: Tree) -> Tree:
    """An average of weights whose encoders of the condition are those of the model itself; LDM averages no others.

    Args:
      average: the averaged model.
      model: the model, of the same structure.

    Returns:
      The average, with every array of a `Conditioned.encoder` taken from the model.
    """

    def merge(averaged: PyTree, raw: PyTree) -> PyTree:
        if not isinstance(averaged, Conditioned):
            return averaged
        merged = jax.tree.map(lambda leaf: leaf, averaged)  # a copy: modules are mutable
        merged.encoder = raw.encoder
        return merged

    return jax.tree.map(merge, average, model, is_leaf=lambda node: isinstance(node, Conditioned))
