"""DWConvFFN against its formula, and what it does with tokens that have no place in the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from diffusion_jax.models.uvit.dwconv_ffn import DepthwiseConv, DWConvFFN

GRID = (3, 4)
WIDTH, HIDDEN, EXTRAS = 8, 16, 2


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (2, EXTRAS + 12, WIDTH))


def make(**options):
    """A layer with no parameter at its starting value."""
    ffn = jax.eval_shape(
        lambda: DWConvFFN(WIDTH, HIDDEN, GRID, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0), **options)
    )
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), ffn)


def reference(ffn, x, norm_first):
    """The layers as the paper draws them, in float64 NumPy."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ffn)

    def gelu(h):
        return 0.5 * h * (1 + erf(h / np.sqrt(2)))

    def norm(h, layer):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return h if layer is None else h * layer.scale[...] + layer.bias[...]

    def activate(h, layer):
        return gelu(norm(h, layer)) if norm_first else norm(gelu(h), layer)

    h = activate(np.asarray(x, np.float64) @ w.fc1.kernel[...] + w.fc1.bias[...], w.norm1)
    image = h[:, EXTRAS:].reshape(2, *GRID, HIDDEN)
    mixed = np.zeros_like(image)
    for row, column in np.ndindex(GRID):
        for i, j in np.ndindex(3, 3):
            if 0 <= row + i - 1 < GRID[0] and 0 <= column + j - 1 < GRID[1]:
                mixed[:, row, column] += image[:, row + i - 1, column + j - 1] * w.depthwise.kernel[...][i, j]
    mixed = activate(mixed + w.depthwise.bias[...], w.norm2)
    h = np.concatenate([h[:, :EXTRAS], mixed.reshape(2, 12, HIDDEN)], axis=1)
    return h @ w.fc2.kernel[...] + w.fc2.bias[...]


@pytest.mark.parametrize("options", [{}, {"norm_affine": False}, {"norm_first": True}])
def test_layers_are_those_of_the_paper(x, options):
    ffn = make(**options)
    want = reference(ffn, x, options.get("norm_first", False))
    np.testing.assert_allclose(jax.jit(ffn.__call__)(x), want, atol=2e-5)


def test_other_tokens_and_the_image_do_not_meet(x):
    ffn = make()
    out = jax.jit(ffn.__call__)(x)
    other_image = jax.jit(ffn.__call__)(x.at[:, EXTRAS:].add(1.0))
    np.testing.assert_array_equal(other_image[:, :EXTRAS], out[:, :EXTRAS])
    other_extras = jax.jit(ffn.__call__)(x.at[:, :EXTRAS].add(1.0))
    np.testing.assert_array_equal(other_extras[:, EXTRAS:], out[:, EXTRAS:])
    assert np.abs(other_extras - out)[:, :EXTRAS].min(-1).max() > 1e-3


def test_other_tokens_may_be_left_alone(x):
    ffn = make()
    none = make(extra_tokens="none")
    np.testing.assert_allclose(none(x)[:, EXTRAS:], ffn(x)[:, EXTRAS:], atol=1e-6)
    assert not np.any(none(x)[:, :EXTRAS]) and np.any(ffn(x)[:, :EXTRAS])


def test_a_kernel_of_its_centre_alone_acts_token_by_token(x):
    ffn = make()
    ffn.depthwise.kernel[...] = jnp.zeros((3, 3, HIDDEN)).at[1, 1].set(1.0)
    ffn.depthwise.bias[...] = jnp.zeros(HIDDEN)
    order = jax.random.permutation(jax.random.key(3), 12)
    shuffled = jnp.concatenate([x[:, :EXTRAS], x[:, EXTRAS:][:, order]], axis=1)
    np.testing.assert_allclose(ffn(shuffled)[:, EXTRAS:], ffn(x)[:, EXTRAS:][:, order], atol=1e-5)


def test_the_depthwise_convolution_starts_as_pytorch_does():
    layer = DepthwiseConv(64, rngs=nnx.Rngs(0))
    for parameter in (layer.kernel, layer.bias):
        assert 0.9 / 3 < np.abs(parameter[...]).max() <= 1 / 3
