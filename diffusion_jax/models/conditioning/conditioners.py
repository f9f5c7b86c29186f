"""From a record to what the backbone is given: what is read, made, encoded, dropped and mirrored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.encoders import ClassTokens, Encoder
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.parallel.partition import PyTree
from diffusion_jax.records import Field, Record, RecordSpec

Arrays = Mapping[str, jax.Array]
"""The arrays of a batch by name, each with a leading batch axis."""


class Conditioner:
    """Makes the condition of a batch from records; a request to sample is a record without an image.

    A conditioner of one's own derives from this class and goes by "package.module:Class" in the config section
    `conditioner`, whose other keys are the arguments of its constructor. It is data only, so that processes which read
    records can be sent a copy: frozen networks are arguments of its methods.

    Attributes:
      reads: the fields of a record that it reads, an attribute of the class.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def spec(self) -> ConditioningSpec:
        """What the backbone is given, after the encoder."""
        return UNCONDITIONAL

    @property
    def array_spec(self) -> RecordSpec:
        """The arrays that `arrays` makes, by name; not `image`, `index`, `known` or the moments of latents."""
        return {}

    @property
    def drop_rate(self) -> float:
        """Probability, 0 ≤ p < 1, with which a condition is replaced by the null condition in training."""
        return 0.0

    @property
    def has_null(self) -> bool:
        """Whether the model learns a null condition, which classifier-free guidance needs (arXiv 2207.12598)."""
        return self.drop_rate > 0

    def arrays(self, record: Record, seed: int, position: int) -> dict[str, np.ndarray]:
        """Makes the arrays of one record on the host.

        Args:
          record: at least the fields of `reads`.
          seed: of the run or of the samples.
          position: of the record in the data order of the run, or the number of the sample; with the seed it decides
            whatever is random.

        Returns:
          The arrays of `array_spec`.
        """
        return {}

    def load_networks(self) -> PyTree:
        """The frozen networks that it needs with their weights, a pytree; None if it needs none."""
        return None

    def abstract_networks(self) -> PyTree:
        """What `load_networks` gives with `jax.ShapeDtypeStruct`s in place of arrays, without reading weights."""
        return None

    def encoder(self, rngs: nnx.Rngs) -> Encoder | None:
        """The network between condition and backbone that is trained with it; None if there is none."""
        return None

    def __call__(self, arrays: Arrays, networks: PyTree = None) -> Conditioning:
        """The condition of a batch.

        Args:
          arrays: those of `array_spec`, each [B, ...].
          networks: what `load_networks` gave.
        """
        return Conditioning()

    def null(self, arrays: Arrays, networks: PyTree = None) -> Conditioning:
        """The null condition of a batch, in the structure of its condition; arguments as of a call."""
        return Conditioning()

    def mirror(self, arrays: Arrays, flip: jax.Array) -> Arrays:
        """The arrays of a batch in which some images are mirrored left to right.

        Args:
          arrays: those of `array_spec`, each [B, ...].
          flip: [B] bool, True where the image is mirrored.

        Returns:
          The arrays that belong to the images as they are then.

        Raises:
          UserError: it does not say how; labels alone stay as they are.
        """
        if set(self.array_spec) - {"label"}:
            raise UserError(
                f"conditioner '{type(self).__name__}' does not say how its arrays are mirrored: set data.flip=False, "
                "or define its method mirror"
            )
        return arrays


def drop(
    conditioner: Conditioner, cond: Conditioning, null: Conditioning, key: jax.Array, index: jax.Array
) -> Conditioning:
    """Replaces conditions by the null condition at random, for classifier-free guidance (arXiv 2207.12598).

    Args:
      conditioner: says how often.
      cond: the condition of a batch.
      null: its null condition.
      key: scalar key of the purpose and step.
      index: [B] global sample indices; whether sample b is dropped depends on (`key`, `index[b]`) alone.

    Returns:
      The condition, null for some of the samples.
    """
    if not conditioner.has_null:
        return cond
    dropped = keys.uniform(key, index) < conditioner.drop_rate  # [B]

    def choose(kept: jax.Array, none: jax.Array) -> jax.Array:
        return jnp.where(dropped.reshape(-1, *(1,) * (kept.ndim - 1)), none, kept)

    return jax.tree.map(choose, cond, null)


@dataclass(frozen=True)
class Unconditional(Conditioner):
    """No condition: what records say of their images is ignored."""


@dataclass(frozen=True)
class ClassConditioner(Conditioner):
    """Class labels, dropped at random in training so that the model also learns the null class (arXiv 2207.12598).

    Attributes:
      num_classes: K; labels are 0…K−1, and the null class is label K.
      label_drop: probability of dropping a label in training, 0 ≤ p < 1; with 0 there is no null class.
    """

    num_classes: int
    label_drop: float = 0.1

    reads: ClassVar[tuple[str, ...]] = ("label",)

    def __post_init__(self):
        if not 0 <= self.label_drop < 1:
            raise UserError(f"conditioner.label_drop={self.label_drop}: must be at least 0 and below 1")

    @property
    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(num_classes=self.num_classes, null_class=self.has_null)

    @property
    def array_spec(self) -> RecordSpec:
        return {"label": Field((), "int32")}

    @property
    def drop_rate(self) -> float:
        return self.label_drop

    def arrays(self, record: Record, seed: int, position: int) -> dict[str, np.ndarray]:
        return {"label": np.asarray(record["label"], np.int32)}

    def __call__(self, arrays: Arrays, networks: PyTree = None) -> Conditioning:
        return Conditioning(label=arrays["label"])

    def null(self, arrays: Arrays, networks: PyTree = None) -> Conditioning:
        return Conditioning(label=jnp.full(arrays["label"].shape, self.num_classes, jnp.int32))


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
