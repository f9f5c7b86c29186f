"""The classifier of noisy images: attention pooling by its definition, guidance towards the wanted class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.diffusion.classifier_guidance import classifier_guidance, log_probability
from diffusion_jax.diffusion.denoiser import Denoised
from diffusion_jax.diffusion.paths import PATHS
from diffusion_jax.interop.mapping import dump_state_dict, load_state_dict
from diffusion_jax.interop.unet import classifier_entries
from diffusion_jax.models.unet.attention import AttentionPool
from diffusion_jax.models.unet.noisy_classifier import NoisyClassifier


@pytest.fixture(scope="module")
def classifier():
    """A small classifier of arbitrary weights."""
    model = jax.eval_shape(
        lambda: NoisyClassifier(
            input_shape=(4, 4, 2),
            num_classes=5,
            model_channels=16,
            channel_mult=(1, 1),
            num_res_blocks=1,
            attention_resolutions=(),
            num_head_channels=8,
            norm_groups=4,
            rngs=nnx.Rngs(0),
        )
    )
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(model)
    values = [rng.standard_normal(leaf.shape, np.float32) / max(leaf.size, 9) ** 0.25 for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(value, jnp.float32) for value in values])


@pytest.fixture(scope="module")
def inputs():
    x = np.random.default_rng(1).standard_normal((3, 4, 4, 2), np.float32)
    return jnp.asarray(x), jnp.array([1.0, 500.0, 999.0])


def test_pooling_reads_the_pixels_by_the_attention_of_their_mean():
    pool = AttentionPool(4, 8, 2, 3, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 2, 2, 8))
    pixels = x.reshape(2, 4, 8)
    tokens = np.concatenate([pixels.mean(1, keepdims=True), pixels], 1) + np.asarray(pool.positions[...], np.float64)
    qkv = np.einsum("bnc,cshd->sbhnd", tokens, np.asarray(pool.qkv.kernel[...], np.float64))
    q, k, v = qkv + np.asarray(pool.qkv.bias[...])[:, None, :, None]
    logits = np.exp(q @ k.swapaxes(-1, -2) / 2)  # d = 4
    mixed = (logits / logits.sum(-1, keepdims=True) @ v)[:, :, 0].reshape(2, 8)
    want = mixed @ np.asarray(pool.proj.kernel[...], np.float64) + np.asarray(pool.proj.bias[...])
    np.testing.assert_allclose(jax.jit(pool)(jnp.asarray(x, jnp.float32)), want, atol=1e-5)
    assert pool.positions.shape == (5, 8)


def test_a_step_along_the_gradient_makes_the_label_likelier(classifier, inputs):
    x, timestep = inputs
    label = jnp.array([0, 4, 2], jnp.int32)

    point = PATHS["ddpm"]().point((timestep + 1) / 1000)
    np.testing.assert_allclose(point.timestep, timestep)

    @jax.jit
    def values(classifier, x):
        wanted = log_probability(classifier, label)
        guided = classifier_guidance(lambda x, point: Denoised(x0=x, epsilon=x), wanted, scale=10.0)
        return wanted(x, point), wanted(x + 1e-3 * guided(x, point).gradient, point)

    before, after = values(classifier, x)
    assert np.all(before < 0) and np.all(after > before)


def test_official_names_round_trip_bit_for_bit(classifier):
    entries = classifier_entries(classifier)
    state_dict = dump_state_dict(classifier, entries)
    assert state_dict["out.2.positional_embedding"].shape == (16, 5)
    assert state_dict["out.2.qkv_proj.weight"].shape == (48, 16, 1)
    assert state_dict["out.2.c_proj.weight"].shape == (5, 16, 1)
    assert state_dict["input_blocks.2.0.in_layers.2.weight"].shape == (16, 16, 3, 3)
    # Pooling orders its channels (3, heads, d), blocks (heads, 3, d).
    qkv = np.asarray(classifier.pool.qkv.kernel[...]).reshape(16, 48).T
    assert np.array_equal(state_dict["out.2.qkv_proj.weight"][..., 0], qkv)
    again = load_state_dict(classifier, state_dict, entries)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(classifier)))
