"""Convolutions with the initialisation of the published LDM networks, and the changes of resolution between them."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

# The published networks leave their layers at PyTorch's default: weight and bias uniform in ±1/√fan_in.
UNIFORM_FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_zeros = nnx.initializers.zeros_init()


def uniform(fan_in: int) -> nnx.Initializer:
    """Uniform in ±1/√fan_in, the initialiser of biases."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(key, shape, dtype, -bound, bound)


def conv3x3(
    channels: int,
    features: int,
    *,
    strides: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
    zero_init: bool = False,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 3×3 convolution with weight and bias uniform in ±1/√fan_in.

    Args:
      channels: channels of the input.
      features: channels of the output.
      strides: 1, or 2 to halve H and W.
      padding: zeros ((above, below), (left, right)). With stride 2 the LDM autoencoder pads ((0, 1), (0, 1)), its UNet
        ((1, 1), (1, 1)).
      zero_init: start at zero, so that what the layer is added to passes unchanged at first.
      dtype: compute dtype; parameters are float32.
      rngs: initialiser streams.

    Returns:
      [B, H, W, channels] to [B, H/strides, W/strides, features] in the compute dtype.
    """
    return nnx.Conv(
        channels,
        features,
        (3, 3),
        strides=strides,
        padding=padding,
        kernel_init=_zeros if zero_init else UNIFORM_FAN_IN,
        bias_init=_zeros if zero_init else uniform(9 * channels),
        dtype=dtype,
        rngs=rngs,
    )


def pointwise(channels: int, features: int, *, zero_init: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A 1×1 convolution, written as the matrix product it is; arguments and initialisation as for `conv3x3`."""
    kernel_init = _zeros if zero_init else UNIFORM_FAN_IN
    bias_init = _zeros if zero_init else uniform(channels)
    return nnx.Linear(channels, features, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles H and W by repeating each pixel: [B, H, W, C] to [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)  # [B, 2H, 2W, C]


def downsample_mean(x: jax.Array) -> jax.Array:
    """Halves H and W, both even, by the mean of 2×2 pixels: [B, H, W, C] to [B, H/2, W/2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))  # [B, H/2, W/2, C]
