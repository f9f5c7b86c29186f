"""Position, time, label and vector embeddings shared by the backbones."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.layers.convolution import pointwise


def sincos_1d(coordinates: np.ndarray, width: int) -> np.ndarray:
    """Sine-cosine features of one axis, all sines first.

    Args:
      coordinates: [N] positions, any real numbers.
      width: number of features, even.

    Returns:
      [N, width] float64: sin(u ω_k) then cos(u ω_k), ω_k = 10000^(−k/(width/2)).
    """
    omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = np.asarray(coordinates, np.float64)[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def grid_positions(height: int, width: int, base: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of a grid stand.

    Args:
      height: token rows.
      width: token columns.
      base: (h, w) of the grid that the positions are measured in: row r stands at r·h/height, column q at q·w/width, so
        a grid of any size covers the positions of the base grid. None is the grid itself, with whole numbers.

    Returns:
      Rows and columns of the tokens in row-major order, [height·width] float64 each.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    base_height, base_width = base or (height, width)
    return rows * (base_height / height), columns * (base_width / width)


def sincos_2d(height: int, width: int, features: int, base: tuple[int, int] | None = None) -> np.ndarray:
    """The fixed position table of MAE and DiT: the first half encodes the column, the second the row.

    Args:
      height: token rows.
      width: token columns.
      features: width D of the table, divisible by 4.
      base: see `grid_positions`.

    Returns:
      [height·width, features] float32, tokens in row-major order (arXiv 2212.09748, §3.2).
    """
    rows, columns = grid_positions(height, width, base)
    halves = [sincos_1d(columns, features // 2), sincos_1d(rows, features // 2)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def timestep_features(timestep: jax.Array, features: int, freq_denominator: int | None = None) -> jax.Array:
    """Sinusoidal features of a timestep, cosines first (arXiv 2006.11239, appendix B; arXiv 2105.05233).

    Args:
      timestep: [B] float, in units of the 1000-step process; fractions are allowed.
      features: number of features; an odd number is padded with one zero.
      freq_denominator: d of the frequencies f_i = 10000^(−i/d); None means features // 2, the official DiT choice;
        diffusers uses features // 2 − 1.

    Returns:
      [B, features] float32.
    """
    half = features // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (freq_denominator or half)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)]
    if features % 2:
        parts.append(jnp.zeros_like(angles[:, :1]))
    return jnp.concatenate(parts, axis=1)


class TimestepEmbedder(nnx.Module):
    """Sinusoidal features of the timestep through a two-layer MLP with SiLU.

    Args:
      width: D of the embedding.
      features: number of sinusoidal features.
      time_scale: factor on the timestep before the features; 1 for models told the index 0…999, 1000 for
        continuous-time models told t ∈ [0, 1].
      freq_denominator: see `timestep_features`.
      hidden: width between the layers; None means `width`.
      fan_in_init: start uniform in ±1/√fan_in, as the UNets do, instead of weights ~ N(0, 0.02²) and biases zero.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        *,
        features: int = 256,
        time_scale: float = 1.0,
        freq_denominator: int | None = None,
        hidden: int | None = None,
        fan_in_init: bool = False,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.time_scale = time_scale
        self.freq_denominator = freq_denominator
        self.fc1 = _linear(features, hidden or width, fan_in_init=fan_in_init, rngs=rngs)
        self.fc2 = _linear(hidden or width, width, fan_in_init=fan_in_init, rngs=rngs)

    def __call__(self, timestep: jax.Array) -> jax.Array:
        """Embeds [B] float timesteps as [B, D] float32."""
        x = timestep_features(timestep * self.time_scale, self.features, self.freq_denominator)
        return self.fc2(jax.nn.silu(self.fc1(x)))


def _linear(inputs: int, outputs: int, *, fan_in_init: bool, rngs: nnx.Rngs) -> nnx.Linear:
    if fan_in_init:
        return pointwise(inputs, outputs, dtype=jnp.dtype("float32"), rngs=rngs)
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)


class VectorEmbedder(nnx.Module):
    """A linear map of a pooled embedding, whose value every backbone adds to its embedding of the time.

    No paper of these backbones has one: it starts as the layers do that embed the time.

    Args:
      conditioning: its `vector_width` is the width of the pooled embedding.
      width: D of the embedding of the time.
      fan_in_init: see `TimestepEmbedder`.
      rngs: initialiser streams.
    """

    def __init__(self, conditioning: ConditioningSpec, width: int, *, fan_in_init: bool = False, rngs: nnx.Rngs):
        self.linear = _linear(conditioning.vector_width, width, fan_in_init=fan_in_init, rngs=rngs)

    def __call__(self, vector: jax.Array | None) -> jax.Array:
        """Maps [B, vector_width] of any floating dtype to [B, D] float32.

        Raises:
          ValueError: no vector was given.
        """
        if vector is None:
            raise ValueError("a model of a pooled embedding was called without cond.vector")
        return self.linear(vector.astype(jnp.float32))  # [B, D]


class LabelEmbedder(nnx.Module):
    """A table of class embeddings, with one more row for the null class when there is one.

    Args:
      conditioning: its `num_classes` and `null_class` size the table.
      width: D of the embedding.
      stddev: standard deviation of the normal initial values.
      rngs: initialiser streams.
    """

    def __init__(self, conditioning: ConditioningSpec, width: int, *, stddev: float = 0.02, rngs: nnx.Rngs):
        rows = conditioning.num_classes + conditioning.null_class
        self.table = nnx.Embed(rows, width, embedding_init=nnx.initializers.normal(stddev), rngs=rngs)

    def __call__(self, label: jax.Array | None) -> jax.Array:
        """Embeds [B] integer labels as [B, D] float32.

        Raises:
          ValueError: no label was given.
        """
        if label is None:
            raise ValueError("a model of classes was called without cond.label")
        return self.table(label)
