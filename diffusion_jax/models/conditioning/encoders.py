"""A backbone together with the network that encodes its condition and is trained with it (τ_θ of arXiv 2112.10752)."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec

Encoder = Callable[[Conditioning], Conditioning]
Tree = TypeVar("Tree")


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
    """A backbone behind an encoder of its condition; called like a backbone.

    Args:
      backbone: what is told the encoded condition.
      encoder: maps the condition of a batch to the one the backbone takes.
    """

    def __init__(self, backbone: Any, encoder: Encoder):
        self.backbone = backbone
        self.encoder = encoder

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Calls the backbone, [B, H, W, C] to [B, H, W, C_out], with the encoded condition."""
        return self.backbone(x, timestep, self.encoder(cond))


def with_encoder_of(average: Tree, model: Tree) -> Tree:
    """An average of weights whose encoders of the condition are those of the model itself; LDM averages no others.

    Args:
      average: the averaged model.
      model: the model, of the same structure.

    Returns:
      The average, with every array of a `Conditioned.encoder` taken from the model.
    """

    def merge(averaged: Any, raw: Any) -> Any:
        if not isinstance(averaged, Conditioned):
            return averaged
        merged = jax.tree.map(lambda leaf: leaf, averaged)  # a copy: modules are mutable
        merged.encoder = raw.encoder
        return merged

    return jax.tree.map(merge, average, model, is_leaf=lambda node: isinstance(node, Conditioned))
