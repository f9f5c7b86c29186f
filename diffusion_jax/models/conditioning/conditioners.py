"""From the labels of a batch to what the backbone is told, with and without the condition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.encoders import ClassTokens, Encoder
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec


class Conditioner(Protocol):
    """Makes conditions from labels, and drops them for classifier-free guidance (arXiv 2207.12598)."""

    @property
    def spec(self) -> ConditioningSpec:
        """What the backbone will be given, after the encoder."""
        ...

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition, which classifier-free guidance needs."""
        ...

    def encoder(self, rngs: nnx.Rngs) -> Encoder | None:
        """The network between condition and backbone that is trained with it; None if there is none."""
        ...

    def __call__(self, label: jax.Array) -> Conditioning:
        """The condition of [B] int32 labels in 0…K−1."""
        ...

    def null(self, batch_size: int) -> Conditioning:
        """The null condition of a batch."""
        ...

    def drop(self, cond: Conditioning, key: jax.Array, index: jax.Array) -> Conditioning:
        """Replaces conditions by the null condition at random.

        Args:
          cond: the condition of a batch.
          key: scalar key of the purpose and step.
          index: [B] global sample indices.

        Returns:
          The condition, null for some of the samples.
        """
        ...


@dataclass(frozen=True)
class Unconditional:
    """No condition: labels of the data are ignored."""

    spec = UNCONDITIONAL
    has_null = False

    def encoder(self, rngs: nnx.Rngs) -> None:
        """There is none."""
        return None

    def __call__(self, label: jax.Array) -> Conditioning:
        return Conditioning()

    def null(self, batch_size: int) -> Conditioning:
        return Conditioning()

    def drop(self, cond: Conditioning, key: jax.Array, index: jax.Array) -> Conditioning:
        return cond


@dataclass(frozen=True)
class ClassConditioner:
    """Class labels, dropped at random in training so that the model also learns the null class (arXiv 2207.12598).

    Attributes:
      num_classes: K; the null class is label K.
      label_drop: probability of dropping a label in training, 0 ≤ p < 1; with 0 there is no null class.
    """

    num_classes: int
    label_drop: float = 0.1

    def __post_init__(self):
        if not 0 <= self.label_drop < 1:
            raise UserError(f"conditioner.label_drop={self.label_drop}: must be at least 0 and below 1")

    @property
    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(num_classes=self.num_classes, null_class=self.has_null)

    @property
    def has_null(self) -> bool:
        return self.label_drop > 0

    def encoder(self, rngs: nnx.Rngs) -> Encoder | None:
        """The backbone embeds the labels itself."""
        return None

    def __call__(self, label: jax.Array) -> Conditioning:
        return Conditioning(label=label)

    def null(self, batch_size: int) -> Conditioning:
        return Conditioning(label=jnp.full((batch_size,), self.num_classes, jnp.int32))

    def drop(self, cond: Conditioning, key: jax.Array, index: jax.Array) -> Conditioning:
        if not self.has_null or cond.label is None:
            return cond
        dropped = keys.uniform(key, index) < self.label_drop
        return cond._replace(label=jnp.where(dropped, jnp.int32(self.num_classes), cond.label))


@dataclass(frozen=True)
class ClassTokenConditioner(ClassConditioner):
    """Class labels as one token that the backbone attends to, embedded by a table that is trained with it (LDM, §4.1).

    Attributes:
      num_classes: K; the null class is label K.
      label_drop: probability of dropping a label in training, 0 ≤ p < 1; with 0 there is no null class.
      width: width of the token.
    """

    width: int = 512

    @property
    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(token_length=1, token_width=self.width)

    def encoder(self, rngs: nnx.Rngs) -> Encoder | None:
        """The table of K (+ 1) rows."""
        return ClassTokens(super().spec, self.width, rngs=rngs)


CONDITIONERS: Mapping[str, Callable[..., Conditioner]] = {
    "none": Unconditional,
    "class": ClassConditioner,
    "class_token": ClassTokenConditioner,
}
"""Conditioners by the `name` of the config section `conditioner`."""
