"""From the labels of a batch to what the backbone is told, with and without the condition."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diffusion_jax import keys
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning import Conditioning


@dataclass(frozen=True)
class ClassConditioner:
    """Class labels, dropped at random in training so that the model also learns the null class (arXiv 2207.12598).

    Attributes:
      num_classes: K; the null class is label K.
      label_drop: probability of dropping a label in training, 0 ≤ p < 1; with 0 there is no null class.
    """

    num_classes: int
    label_drop: float = 0.1

    provides = frozenset({"label"})

    def __post_init__(self):
        if not 0 <= self.label_drop < 1:
            raise UserError(f"conditioner.label_drop={self.label_drop}: must be at least 0 and below 1")

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition, which classifier-free guidance needs."""
        return self.label_drop > 0

    def __call__(self, label: jax.Array) -> Conditioning:
        """The condition of [B] int32 labels in 0…K−1."""
        return Conditioning(label=label)

    def null(self, batch_size: int) -> Conditioning:
        """The null condition of a batch."""
        return Conditioning(label=jnp.full((batch_size,), self.num_classes, jnp.int32))

    def drop(self, cond: Conditioning, key: jax.Array, index: jax.Array) -> Conditioning:
        """Replaces labels by the null class with probability `label_drop`.

        Args:
          cond: the condition of a batch.
          key: scalar key of the purpose and step.
          index: [B] global sample indices.

        Returns:
          The condition with some labels equal to K.
        """
        if not self.has_null or cond.label is None:
            return cond
        dropped = keys.uniform(key, index) < self.label_drop
        return cond._replace(label=jnp.where(dropped, jnp.int32(self.num_classes), cond.label))


CONDITIONERS = {"class": ClassConditioner}
"""Conditioners by the `name` of the config section `conditioner`."""
