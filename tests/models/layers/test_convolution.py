"""Convolutions: initial values, padding, resolution."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.models.layers.convolution import conv3x3, downsample_mean, pointwise, upsample_nearest

FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize(("layer", "fan_in"), [(conv3x3, 9 * 32), (pointwise, 32)])
def test_initial_values_are_uniform_in_the_fan_in(layer, fan_in):
    made = layer(32, 256, dtype=FLOAT32, rngs=nnx.Rngs(0))
    bound = 1 / math.sqrt(fan_in)
    for values in (made.kernel[...], made.bias[...]):
        assert 0.95 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.1)
    assert made.kernel.dtype == made.bias.dtype == jnp.float32
    zero = layer(32, 256, zero_init=True, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert not np.any(zero.kernel[...]) and not np.any(zero.bias[...])


def test_downsampling_reads_below_and_to_the_right():
    layer = conv3x3(1, 1, strides=2, padding=((0, 1), (0, 1)), dtype=FLOAT32, rngs=nnx.Rngs(0))
    layer.kernel[...], layer.bias[...] = jnp.ones((3, 3, 1, 1)), jnp.zeros(1)
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    padded = np.pad(image[0, :, :, 0], ((0, 1), (0, 1)))
    sums = [[padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].sum() for j in range(2)] for i in range(2)]
    np.testing.assert_array_equal(layer(image)[0, :, :, 0], sums)


def test_upsampling_repeats_pixels():
    image = jnp.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(upsample_nearest(image), image.repeat(2, axis=1).repeat(2, axis=2))


def test_downsampling_takes_the_mean_of_four_pixels():
    image = jnp.arange(32.0).reshape(1, 4, 4, 2)
    quarters = [image[:, i::2, j::2] for i in range(2) for j in range(2)]
    np.testing.assert_allclose(downsample_mean(image), np.mean(quarters, axis=0))
