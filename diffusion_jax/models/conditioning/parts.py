"""What a backbone may be told beside the noisy image and the time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError


class Conditioning(NamedTuple):
    """The conditions of a batch; every part is optional and a pytree leaf (None is an empty subtree).

    Attributes:
      label: [B] int32 class index; `num_classes` is the null class of classifier-free guidance.
      vector: [B, D] float, a pooled embedding.
      tokens: [B, M, D] float, a sequence to attend to.
      token_mask: [B, M] bool, True where `tokens` is valid; needs `tokens`. A row all False stands for none,
        the null condition of models of text.
      image: [B, H, W, C] float, channels concatenated to the noisy image.
      dropout_keys: [B] keys, one per sample, given in training only; models with dropout drop nothing without them.
    """

    label: jax.Array | None = None
    vector: jax.Array | None = None
    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    image: jax.Array | None = None
    dropout_keys: jax.Array | None = None


class ConditioningSpec(NamedTuple):
    """Which parts of a `Conditioning` a backbone will be given, and their sizes; zero means that there is no such part.

    Attributes:
      num_classes: K; labels are 0…K−1.
      null_class: whether label K, the null class, exists.
      vector_width: width of the pooled embedding.
      token_length: number M of tokens.
      token_width: width of a token.
      image_channels: channels of the image.
    """

    num_classes: int = 0
    null_class: bool = False
    vector_width: int = 0
    token_length: int = 0
    token_width: int = 0
    image_channels: int = 0

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts of `Conditioning` that are there, `token_mask` aside."""
        sizes = {
            "label": self.num_classes,
            "vector": self.vector_width,
            "tokens": self.token_length,
            "image": self.image_channels,
        }
        return frozenset(part for part, size in sizes.items() if size)

    def check(self, model: str, takes: frozenset[str]) -> None:
        """Refuses parts that a model has no use for.

        Args:
          model: the name of the model, for the message.
          takes: the parts that it can be told.

        Raises:
          UserError: there is a part that is not among `takes`.
        """
        spare = self.parts - takes
        if spare:
            able = f"takes only {', '.join(sorted(takes))}" if takes else "takes no condition"
            raise UserError(
                f"model '{model}' {able}, the conditioner provides {', '.join(sorted(spare))}: "
                "choose another model or conditioner"
            )

    def example(self, batch: int, height: int, width: int) -> Conditioning:
        """The shapes of a batch of conditions, to trace a model with.

        Args:
          batch: B.
          height: H of the backbone's input.
          width: W of the backbone's input.

        Returns:
          A `Conditioning` of `jax.ShapeDtypeStruct`.
        """

        def shape(size: int, *axes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct | None:
            return jax.ShapeDtypeStruct((batch, *axes), jnp.dtype(dtype)) if size else None

        parts = {
            "label": shape(self.num_classes, dtype="int32"),
            "vector": shape(self.vector_width, self.vector_width),
            "tokens": shape(self.token_length, self.token_length, self.token_width),
            "image": shape(self.image_channels, height, width, self.image_channels),
        }
        return Conditioning(**parts)  # type: ignore[arg-type]


UNCONDITIONAL = ConditioningSpec()
"""What a backbone is told that is told nothing."""
