"""Cheap layers keep no more than their arguments for the backward pass, and have the values of their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.models.layers.activations import gelu
from diffusion_jax.models.layers.attention import xla_attention
from diffusion_jax.models.layers.norms import LayerNorm, RMSNorm
from diffusion_jax.models.uvit.dwconv_ffn import DepthwiseConv, DWConvFFN


def kept(function, *arguments):
    """Elements of all arrays that the backward pass is handed."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(function, *x)[1], *arguments)))


def apply(layer, x):
    return layer(x)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda x: gelu(x, approximate=False), id="gelu"),
        pytest.param(lambda x: gelu(x, approximate=True), id="tanh gelu"),
        LayerNorm(6),
        LayerNorm(6, affine=False),
        RMSNorm(6),
        DepthwiseConv(6, rngs=nnx.Rngs(0)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_but_the_arguments_is_kept(layer):
    x = jnp.ones((2, 8, 8, 6))
    if isinstance(layer, nnx.Module):
        parameters = sum(leaf.size for leaf in jax.tree.leaves(layer))
        assert x.size <= kept(apply, layer, x) <= x.size + parameters
    else:
        assert kept(layer, x) == x.size


def test_the_feed_forward_with_a_convolution_keeps_four_arrays_of_its_hidden_width():
    ffn = DWConvFFN(4, 32, (8, 8), dtype=jnp.float32, rngs=nnx.Rngs(0))
    hidden = 2 * 64 * 32  # behind the first map, before and behind the convolution, before the last map
    assert kept(lambda x: ffn(x), jnp.ones((2, 64, 4))) < 4.6 * hidden


def test_attention_keeps_its_weights_once():
    q = jnp.ones((2, 64, 3, 4))
    weights = 2 * 3 * 64 * 64
    assert kept(lambda q, k, v: xla_attention(q, k, v, None, None), q, q, q) < 1.5 * weights


def test_attention_to_far_larger_logits_neither_overflows_nor_vanishes():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.float32(rng.standard_normal((1, 5, 1, 4))) for _ in range(3))
    for scale in (100.0, -100.0):
        logits = np.einsum("nd,md->nm", np.float64(q[0, :, 0]), np.float64(k[0, :, 0])) * scale / 2
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        want = weights / weights.sum(-1, keepdims=True) @ np.float64(v[0, :, 0])
        np.testing.assert_allclose(xla_attention(scale * q, k, v, None, None)[0, :, 0], want, atol=1e-3)


def test_the_exact_gelu_and_its_slope():
    x = np.linspace(-9, 9, 401)
    cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    value, slope = jax.jvp(lambda x: gelu(x, approximate=False), (jnp.float32(x),), (jnp.ones(x.shape),))
    np.testing.assert_allclose(value, x * cdf, atol=2e-6)
    np.testing.assert_allclose(slope, cdf + x * density, atol=2e-6)
    transposed = jax.grad(lambda x: gelu(x, approximate=False).sum())(jnp.float32(x))
    np.testing.assert_allclose(transposed, slope, atol=1e-6)
    half = gelu(jnp.bfloat16(x), approximate=False)
    assert half.dtype == jnp.bfloat16
    rounded = np.float64(jnp.bfloat16(x))
    exact = rounded * [0.5 * math.erfc(-value / math.sqrt(2)) for value in rounded]
    np.testing.assert_allclose(np.float64(half), exact, rtol=2**-8, atol=2e-6)
