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
      image: [B, H, W, C] float, channels concatenated to the noisy image; `Conditioned` does that for every backbone.
      second_time: [B] float, in the units of the timestep; for models of two times, such as flow maps.
      dropout_keys: [B] keys, one per sample, given in training only; models with dropout drop nothing without them.
    """

    label: jax.Array | None = None
    vector: jax.Array | None = None
    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    image: jax.Array | None = None
    second_time: jax.Array | None = None
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
      second_time: whether there is a second time.
    """

    num_classes: int = 0
    null_class: bool = False
    vector_width: int = 0
    token_length: int = 0
    token_width: int = 0
    image_channels: int = 0
    second_time: bool = False

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts of `Conditioning` that are there, `token_mask` aside."""
        sizes = {
            "label": self.num_classes,
            "vector": self.vector_width,
            "tokens": self.token_length,
            "image": self.image_channels,
            "second_time": self.second_time,
        }
        return frozenset(part for part, size in sizes.items() if size)

    def without_image(self) -> "ConditioningSpec":
        """What is left for a backbone that gets the image as channels of its input."""
        return self._replace(image_channels=0)

    def backbone_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of a backbone's input.

        Args:
          input_shape: (H, W, C) of x_t.

        Returns:
          (H, W, C + image_channels).
        """
        height, width, channels = input_shape
        return height, width, channels + self.image_channels

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
            "second_time": shape(self.second_time),
        }
        return Conditioning(**parts)  # type: ignore[arg-type]


def given_tokens(cond: Conditioning) -> jax.Array:
    """The tokens [B, M, D] of a batch, for a model that was built for them.

    Raises:
      ValueError: there are none.
    """
    if cond.tokens is None:
        raise ValueError("a model of tokens was called without cond.tokens")
    return cond.tokens


def sequence_mask(token_mask: jax.Array | None, before: int, after: int = 0) -> jax.Array | None:
    """Which members of a sequence may be attended to, where the tokens of the condition stand among others.

    Args:
      token_mask: [B, M] bool, see `Conditioning`; None masks none.
      before: number of others before the tokens; all may be attended to.
      after: number of others after them.

    Returns:
      [B, before + M + after] bool, or None.
    """
    if token_mask is None:
        return None
    return jnp.pad(token_mask, ((0, 0), (before, after)), constant_values=True)


def zero_dropped(x: jax.Array, token_mask: jax.Array | None) -> jax.Array:
    """Leaves nothing of the tokens of samples that have none, whatever a row of padding holds.

    Args:
      x: [B, ...] tokens or what was made of them.
      token_mask: [B, M] bool, see `Conditioning`; None drops no sample.

    Returns:
      [B, ...], zero where a sample's mask is all False.
    """
    if token_mask is None:
        return x
    return jnp.where(token_mask.any(1).reshape(-1, *[1] * (x.ndim - 1)), x, 0)


UNCONDITIONAL = ConditioningSpec()
"""What a backbone is told that is told nothing."""
