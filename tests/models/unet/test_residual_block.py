"""The residual block against its definition written out, its start, its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.models.unet.residual_block import ResBlock


def make(channels=8, features=12, groups=4, seed=0, **options):
    block = ResBlock(
        channels,
        features,
        6,
        groups=groups,
        **{"scale_shift": True, "dtype": jnp.dtype("float32"), **options},
        rngs=nnx.Rngs(seed),
    )
    return nudge(block)


def nudge(block):
    """Moves every parameter, so that none has its special initial value."""
    leaves, structure = jax.tree.flatten(block)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def reference(block, x, embedding, scale_shift, resample):
    """The block in numpy float64."""

    def norm(layer, x):
        groups = x.reshape(*x.shape[:3], 4, -1)
        centred = groups - groups.mean((1, 2, 4), keepdims=True)
        out = (centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-5)).reshape(x.shape)
        return out * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    def silu(x):
        return x / (1 + np.exp(-x))

    def conv(layer, x):
        kernel, (_, height, width, _) = np.asarray(layer.kernel[...], np.float64), x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
        return sum(shifted) + np.asarray(layer.bias[...])

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])

    def change(x):
        if resample == "down":
            return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        return x.repeat(2, 1).repeat(2, 2) if resample == "up" else x

    x, embedding = np.asarray(x, np.float64), np.asarray(embedding, np.float64)
    h = conv(block.conv1, change(silu(norm(block.norm1, x))))
    modulation = linear(block.embedding, embedding)[:, None, None]
    if scale_shift:
        scale, shift = np.split(modulation, 2, axis=-1)
        h = norm(block.norm2, h) * (1 + scale) + shift
    else:
        h = norm(block.norm2, h + modulation)
    return linear(block.shortcut, change(x)) + conv(block.conv2, silu(h))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    return jnp.float32(rng.standard_normal((2, 4, 6, 8))), jnp.float32(rng.standard_normal((2, 6)))


@pytest.mark.parametrize(("scale_shift", "resample"), [(True, "none"), (False, "none"), (True, "down"), (False, "up")])
def test_agrees_with_its_definition(inputs, scale_shift, resample):
    block = make(scale_shift=scale_shift, resample=resample)
    out = jax.jit(block)(*inputs)
    np.testing.assert_allclose(out, reference(block, *inputs, scale_shift, resample), atol=2e-5)


def test_starts_as_the_identity(inputs):
    block = ResBlock(8, 8, 6, scale_shift=True, groups=4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    assert block.shortcut is None
    assert np.array_equal(block(*inputs), inputs[0])


def test_counts_the_published_parameters():
    def count(channels, features, **options):
        block = jax.eval_shape(lambda: make(channels, features, groups=32, **options))
        return sum(leaf.size for leaf in jax.tree.leaves(block))

    # Table of the class-conditional LDM-8, whose embedding is 1024 wide; ours is 6 here.
    assert count(256, 256, scale_shift=False) + (1024 - 6) * 256 == 1_443_584
    assert count(2048, 1024, scale_shift=False) + (1024 - 6) * 1024 == 31_467_520
    assert count(256, 256, scale_shift=True) - count(256, 256, scale_shift=False) == 7 * 256


def test_dropout_belongs_to_the_sample(inputs):
    block = make(dropout=0.25)
    draws = keys.sample_keys(jax.random.key(0), jnp.arange(2))
    apply = jax.jit(block)
    whole, plain = apply(*inputs, draws), apply(*inputs)
    assert not np.allclose(whole, plain)
    second = jax.jit(block)(inputs[0][1:], inputs[1][1:], draws[1:])
    np.testing.assert_allclose(second, whole[1:], atol=1e-6)
    assert np.array_equal(make()(*inputs, draws), make()(*inputs))


def test_dropout_keeps_the_mean():
    kept = make(dropout=0.25)._drop(jnp.ones((4, 64, 64, 2)), keys.sample_keys(jax.random.key(0), jnp.arange(4)))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(4 / 3)}
    np.testing.assert_allclose(kept.mean(), 1, atol=0.01)


def test_bfloat16_keeps_norms_and_parameters_in_float32(inputs):
    block = make(dtype=jnp.dtype("bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(block)} == {jnp.dtype("float32")}
    x, embedding = inputs
    half = block(x.astype(jnp.bfloat16), embedding)
    assert half.dtype == jnp.bfloat16
    full = make()(x, embedding)
    error = np.abs(half.astype(jnp.float32) - full).max() / np.std(full)
    assert 1e-4 < error < 0.1
