"""The counter of multiply-adds against sums done by hand."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models.backbones import abstract_backbone, backbone_macs
from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.dit.dit import dit_config
from diffusion_jax.models.macs import count_macs


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_convolutions_and_loops():
    assert count_macs(lambda a, b: a @ b, zeros(3, 4, 5), zeros(3, 5, 7)) == 3 * 4 * 5 * 7

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dimensions)

    assert count_macs(convolve, zeros(2, 8, 6, 4), zeros(3, 3, 4, 10)) == 2 * 4 * 3 * 10 * 9 * 4

    def grouped(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=4
        )

    assert count_macs(grouped, zeros(1, 5, 5, 4), zeros(3, 3, 1, 4)) == 5 * 5 * 4 * 9

    def loop(x, weights):
        return jax.lax.scan(jax.checkpoint(lambda x, weight: (jax.jit(jnp.dot)(x, weight), None)), x, weights)[0]

    assert count_macs(loop, zeros(2, 3), zeros(5, 3, 3)) == 5 * 2 * 3 * 3
    assert count_macs(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), zeros(3, 3), zeros(3, 3)) == 27
    with pytest.raises(ValueError, match="while loop"):
        count_macs(lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), zeros(3, 3), zeros(3, 3))


def test_dit_is_the_sum_of_the_paper():
    spec = ConditioningSpec(num_classes=1000, null_class=True)
    model = abstract_backbone("dit", input_shape=(32, 32, 4), out_channels=8, conditioning=spec, **dit_config("B/4"))
    n, d, depth, p2 = 64, 768, 12, 16
    blocks = depth * (12 * d * d * n + 2 * n * n * d + 6 * d * d)
    expected = n * p2 * 4 * d + 256 * d + d * d + blocks + 2 * d * d + n * d * p2 * 8
    assert backbone_macs(model, (32, 32, 4), spec) == expected
