"""Text preparation: its parameters, the null condition, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.models.conditioning.parts import Conditioning
from diffusion_jax.models.conditioning.text_features import TextFeatures


def make(token_width=6, width=8, **options):
    init = nnx.initializers.normal(0.5)
    features = TextFeatures(token_width, width, kernel_init=init, bias_init=init, rngs=nnx.Rngs(0), **options)
    features.norm.bias[...] = jnp.arange(1.0, features.norm.bias.shape[0] + 1)
    return features


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return jnp.float32(rng.standard_normal((2, 8))), jnp.float32(rng.standard_normal((2, 5, 6)))


def test_time_and_the_mean_of_the_text_share_the_embedding(inputs):
    time, tokens = inputs
    features = make()
    embedding, text = features(time, Conditioning(tokens=tokens))
    values = np.asarray(tokens, np.float64)
    centred = values - values.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + np.arange(1, 7)
    np.testing.assert_allclose(text.tokens, normed, atol=1e-5)
    assert text.mask is None
    np.testing.assert_allclose(embedding[:, :4], features.time_half(time), atol=1e-6)
    pooled = features.pool(jnp.float32(normed.mean(1)))
    np.testing.assert_allclose(embedding[:, 4:], features.text_half(pooled), atol=1e-5)


def test_nothing_is_left_of_a_text_that_is_dropped(inputs):
    time, tokens = inputs
    features = make()
    mask = jnp.array([[True, True, False, False, False], [False] * 5])
    embedding, text = features(time, Conditioning(tokens=tokens, token_mask=mask))
    whole, whole_text = features(time, Conditioning(tokens=tokens))
    assert np.array_equal(embedding[0], whole[0]) and np.array_equal(text.tokens[0], whole_text.tokens[0])
    assert not np.any(text.tokens[1])
    np.testing.assert_allclose(embedding[1, 4:], features.text_half.bias[...], atol=1e-6)
    other, _ = features(time, Conditioning(tokens=tokens + jnp.float32(3) * tokens**2, token_mask=mask))
    assert np.array_equal(other[1], embedding[1]) and not np.array_equal(other[0], embedding[0])


def test_padding_can_be_masked(inputs):
    time, tokens = inputs
    features = make(mask_padding=True)
    mask = jnp.array([[True, True, False, False, False], [True] * 5])
    embedding, text = features(time, Conditioning(tokens=tokens, token_mask=mask))
    short, _ = features(time[:1], Conditioning(tokens=tokens[:1, :2]))
    np.testing.assert_allclose(embedding[:1], short, atol=1e-6)
    assert np.array_equal(text.mask, mask)
    dropped, _ = features(time, Conditioning(tokens=tokens, token_mask=jnp.zeros((2, 5), bool)))
    assert np.all(np.isfinite(dropped))


def test_counts_the_parameters_of_the_published_models():
    def count(token_width, width, **options):
        features = jax.eval_shape(lambda: make(token_width, width, **options))
        return sum(leaf.size for leaf in jax.tree.leaves(features))

    assert count(1024, 1024) == 2 * 1024 + (1024 + 1) * 1024 + 1024**2 + 1024
    assert count(4096, 1024, text_width=1024) - count(1024, 1024) == 4096 * 1024 + 1024


def test_a_call_without_tokens_is_refused(inputs):
    with pytest.raises(ValueError, match=r"without cond\.tokens"):
        make()(inputs[0], Conditioning())
