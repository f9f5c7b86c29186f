"""The building blocks of the 2015-12-05 Inception network, under the layer names of its PyTorch translation."""

import jax
import jax.numpy as jnp
from flax import nnx

NORM_EPSILON = 1e-3
SAME = (1, 1)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalisation by stored statistics, ReLU.

    Args:
      channels: of the input.
      features: of the output.
      size: height and width of the kernel.
      strides: 1 or 2.
      padding: zeros on either side of (H, W).
    """

    def __init__(
        self, channels: int, features: int, size: tuple[int, int], strides: int = 1, padding: tuple[int, int] = (0, 0)
    ):
        self.strides = strides
        self.padding = padding
        self.kernel = nnx.Param(jnp.zeros((*size, channels, features)))
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, H', W', features] float32, ≥ 0."""
        # Scaling the kernel instead of the result saves a pass over the activations.
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + NORM_EPSILON)
        kernel = self.kernel[...] * factor
        if kernel.shape[:2] == (1, 1):
            x = x @ kernel[0, 0]
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.strides, self.strides),
                padding=[(pad, pad) for pad in self.padding],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return jax.nn.relu(x + (self.bias[...] - self.mean[...] * factor))


def row_conv(channels: int, features: int, length: int) -> ConvNorm:
    """A `ConvNorm` with a kernel of 1 × `length` that keeps the size."""
    return ConvNorm(channels, features, (1, length), padding=(0, length // 2))


def column_conv(channels: int, features: int, length: int) -> ConvNorm:
    """A `ConvNorm` with a kernel of `length` × 1 that keeps the size."""
    return ConvNorm(channels, features, (length, 1), padding=(length // 2, 0))


def max_pool(x: jax.Array, strides: int, padding: int = 0) -> jax.Array:
    """The maximum over 3 × 3 windows, [B, H, W, C] to [B, H', W', C]; padding never wins."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for axis in (2, 1):  # three whole slices at a time, which CPUs compare far faster than windows
        length = (x.shape[axis] - 3) // strides * strides + 1
        first, second, third = (jax.lax.slice_in_dim(x, i, i + length, strides, axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """The mean over 3 × 3 windows at stride 1, [B, H, W, C] to the same; cells outside the image do not count."""
    window = ((1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), SAME, SAME, (0, 0)))
    count = jax.lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1)), 0.0, jax.lax.add, *window)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *window) / count


class MixedA(nnx.Module):
    """35 × 35: 1×1, 5×5, two 3×3, average pool.

    Args:
      channels: of the input.
      pool_features: of the branch behind the pool; the output has 224 more.
    """

    def __init__(self, channels: int, pool_features: int):
        self.branch1x1 = ConvNorm(channels, 64, (1, 1))
        self.branch5x5_1 = ConvNorm(channels, 48, (1, 1))
        self.branch5x5_2 = ConvNorm(48, 64, (5, 5), padding=(2, 2))
        self.branch3x3dbl_1 = ConvNorm(channels, 64, (1, 1))
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), padding=SAME)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), padding=SAME)
        self.branch_pool = ConvNorm(channels, pool_features, (1, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, H, W, 224 + pool_features]."""
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedB(nnx.Module):
    """35 × 35 to 17 × 17: 3×3, two 3×3, maximum pool, all at stride 2.

    Args:
      channels: of the input; the output has 480 more.
    """

    def __init__(self, channels: int):
        self.branch3x3 = ConvNorm(channels, 384, (3, 3), strides=2)
        self.branch3x3dbl_1 = ConvNorm(channels, 64, (1, 1))
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), padding=SAME)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), strides=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, (H − 1)/2, (W − 1)/2, 480 + channels]."""
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            max_pool(x, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedC(nnx.Module):
    """17 × 17: 1×1, 7×7 in two factors, 7×7 twice in factors, average pool.

    Args:
      channels: of the input.
      width: of the inner layers.
    """

    def __init__(self, channels: int, width: int):
        self.branch1x1 = ConvNorm(channels, 192, (1, 1))
        self.branch7x7_1 = ConvNorm(channels, width, (1, 1))
        self.branch7x7_2 = row_conv(width, width, 7)
        self.branch7x7_3 = column_conv(width, 192, 7)
        self.branch7x7dbl_1 = ConvNorm(channels, width, (1, 1))
        self.branch7x7dbl_2 = column_conv(width, width, 7)
        self.branch7x7dbl_3 = row_conv(width, width, 7)
        self.branch7x7dbl_4 = column_conv(width, width, 7)
        self.branch7x7dbl_5 = row_conv(width, 192, 7)
        self.branch_pool = ConvNorm(channels, 192, (1, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, H, W, 768]."""
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(twice)),
            self.branch_pool(average_pool(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedD(nnx.Module):
    """17 × 17 to 8 × 8: 3×3, 7×7 in factors and 3×3, maximum pool.

    Args:
      channels: of the input; the output has 512 more.
    """

    def __init__(self, channels: int):
        self.branch3x3_1 = ConvNorm(channels, 192, (1, 1))
        self.branch3x3_2 = ConvNorm(192, 320, (3, 3), strides=2)
        self.branch7x7x3_1 = ConvNorm(channels, 192, (1, 1))
        self.branch7x7x3_2 = row_conv(192, 192, 7)
        self.branch7x7x3_3 = column_conv(192, 192, 7)
        self.branch7x7x3_4 = ConvNorm(192, 192, (3, 3), strides=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, (H − 1)/2, (W − 1)/2, 512 + channels]."""
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))),
            max_pool(x, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedE(nnx.Module):
    """8 × 8: 1×1, 3×3 split in two directions, two 3×3 of which the last is split, pool.

    Args:
      channels: of the input.
      pool: "average", or "max", which only the last block of this network has.
    """

    def __init__(self, channels: int, pool: str):
        self.pool = pool
        self.branch1x1 = ConvNorm(channels, 320, (1, 1))
        self.branch3x3_1 = ConvNorm(channels, 384, (1, 1))
        self.branch3x3_2a = row_conv(384, 384, 3)
        self.branch3x3_2b = column_conv(384, 384, 3)
        self.branch3x3dbl_1 = ConvNorm(channels, 448, (1, 1))
        self.branch3x3dbl_2 = ConvNorm(448, 384, (3, 3), padding=SAME)
        self.branch3x3dbl_3a = row_conv(384, 384, 3)
        self.branch3x3dbl_3b = column_conv(384, 384, 3)
        self.branch_pool = ConvNorm(channels, 192, (1, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] to [B, H, W, 2048]."""
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = max_pool(x, strides=1, padding=1) if self.pool == "max" else average_pool(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)
