"""The PatchGAN discriminator (arXiv 1611.07004) as the LDM first stages are trained against it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.convolution import uniform
from diffusion_jax.models.layers.precision import DTypeName

MOMENTUM = 0.1  # share of a batch in the running statistics
EPS = 1e-5
SLOPE = 0.2


class NormStats(NamedTuple):
    """Running statistics of one batch norm: state of the training run, not parameters.

    Attributes:
      mean: [C] float32.
      variance: [C] float32.
    """

    mean: jax.Array
    variance: jax.Array


class BatchNorm(nnx.Module):
    """Normalises each channel over batch, H and W, then applies a learned scale and bias (arXiv 1502.03167).

    Args:
      channels: C.
      rngs: initialiser streams; scale from N(1, 0.02), bias 0.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, stats: NormStats, *, train: bool) -> tuple[jax.Array, NormStats]:
        """Maps [B, H, W, C] to float32 of that shape and the next statistics.

        With `train` the statistics are those of the batch, over all devices, and are mixed into the running ones, their
        variance as the unbiased estimate; without it the running ones are used and stay as they are.
        """
        x = x.astype(jnp.float32)
        mean, variance = stats
        if train:
            mean = x.mean((0, 1, 2))  # [C]
            variance = jnp.square(x - mean).mean((0, 1, 2))  # [C]
            count = x.size // x.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            seen = jax.lax.stop_gradient(NormStats(mean, unbiased))
            stats = jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, stats, seen)
        return (x - mean) * (jax.lax.rsqrt(variance + EPS) * self.scale[...]) + self.bias[...], stats


class ActNorm(nnx.Module):
    """A learned shift and scale per channel, meant to start as those that normalise the first batch (arXiv 1807.03039).

    Args:
      channels: C.
    """

    def __init__(self, channels: int):
        self.loc = nnx.Param(jnp.zeros(channels))
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """scale · (x + loc): maps [B, H, W, C] to float32 of that shape."""
        return self.scale[...] * (x.astype(jnp.float32) + self.loc[...])


class PatchDiscriminator(nnx.Module):
    """Judges overlapping patches of an image, 70 pixels wide with three layers and 34 with two.

    Args:
      in_channels: channels of the images.
      ndf: width of the first layer; each further one doubles it, up to 8·ndf.
      num_layers: convolutions that halve the image, ≥ 1.
      norm: "batch", or "actnorm", whose convolutions have biases.
      dtype: compute dtype of the convolutions; parameters, norms and logits are float32.
      rngs: initialiser streams; kernels from N(0, 0.02), biases uniform in ±1/√fan_in.

    Raises:
      UserError: fewer than one layer.
    """

    partition_rules = (
        (r"conv_in/kernel", PartitionSpec(None, None, None, "fsdp")),
        (r"convs/\d+/kernel", PartitionSpec(None, None, "fsdp", "tensor")),
        (r"conv_out/kernel", PartitionSpec(None, None, "fsdp", None)),
    )

    def __init__(
        self,
        *,
        in_channels: int = 3,
        ndf: int = 64,
        num_layers: int = 3,
        norm: Literal["batch", "actnorm"] = "batch",
        dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        if num_layers < 1:
            raise UserError(f"discriminator.num_layers={num_layers}: must be at least 1")
        widths = [ndf * min(2**i, 8) for i in range(num_layers + 1)]
        compute = jnp.dtype(dtype)

        def conv(channels: int, features: int, strides: int, bias: bool) -> nnx.Conv:
            return nnx.Conv(
                channels,
                features,
                (4, 4),
                strides=strides,
                padding=((1, 1), (1, 1)),
                use_bias=bias,
                kernel_init=nnx.initializers.normal(0.02),
                bias_init=uniform(16 * channels),
                dtype=compute,
                rngs=rngs,
            )

        self.conv_in = conv(in_channels, widths[0], 2, True)
        strides = [2] * (num_layers - 1) + [1]
        self.convs = nnx.List(
            [conv(widths[i], widths[i + 1], strides[i], norm == "actnorm") for i in range(num_layers)]
        )
        self.norms = nnx.List(
            [BatchNorm(width, rngs=rngs) if norm == "batch" else ActNorm(width) for width in widths[1:]]
        )
        self.conv_out = conv(widths[-1], 1, 1, True)

    def init_stats(self) -> tuple[NormStats, ...]:
        """The running statistics before the first step, one for each batch norm."""
        norms = [norm for norm in self.norms if isinstance(norm, BatchNorm)]
        return tuple(NormStats(jnp.zeros(norm.bias.shape), jnp.ones(norm.bias.shape)) for norm in norms)

    def __call__(
        self, images: jax.Array, stats: Sequence[NormStats], *, train: bool
    ) -> tuple[jax.Array, tuple[NormStats, ...]]:
        """Judges images.

        Args:
          images: [B, H, W, in_channels] float, about [-1, 1].
          stats: the running statistics, from `init_stats` or an earlier call; empty for "actnorm".
          train: normalise by the batch and update the statistics; else normalise by the statistics.

        Returns:
          Logits [B, h, w, 1] float32, high for real, with h = H/2^num_layers − 2 (30×30 for 256² and three layers);
          and the next statistics.
        """
        new_stats: list[NormStats] = []
        x = jax.nn.leaky_relu(self.conv_in(images), SLOPE)  # [B, H/2, W/2, ndf]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)  # [B, H/2^i, W/2^i, ndf·2^i]; the last: one row and one column less
            if isinstance(norm, BatchNorm):
                x, updated = norm(x, stats[len(new_stats)], train=train)
                new_stats.append(updated)
            else:
                x = norm(x)
            x = jax.nn.leaky_relu(x, SLOPE)
        return self.conv_out(x).astype(jnp.float32), tuple(new_stats)  # [B, h, w, 1]

    def fit_actnorms(self, images: jax.Array) -> "PatchDiscriminator":
        """A copy whose actnorms give zero mean and unit deviation on `images`; without actnorms, an equal copy.

        Args:
          images: [B, H, W, in_channels], the first batch that the discriminator sees.

        Returns:
          The discriminator to start training from.
        """
        fitted = jax.tree.map(lambda leaf: leaf, self)
        x = jax.nn.leaky_relu(self.conv_in(images), SLOPE)  # [B, H/2, W/2, ndf]
        for conv, norm in zip(fitted.convs, fitted.norms, strict=True):
            if not isinstance(norm, ActNorm):
                break
            x = conv(x).astype(jnp.float32)  # [B, H/2^i, W/2^i, ndf·2^i]
            norm.loc[...] = -x.mean((0, 1, 2))
            norm.scale[...] = 1 / (x.std((0, 1, 2), ddof=1) + 1e-6)
            x = jax.nn.leaky_relu(norm(x), SLOPE)
        return fitted
