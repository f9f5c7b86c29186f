"""The KL autoencoder against the official one, its published sizes, and the properties its users lean on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.autoencoder_names import LDM, autoencoder_entries
from diffusion_jax.interop.mapping import load_state_dict
from diffusion_jax.models.autoencoder.autoencoder import AUTOENCODERS, AutoencoderKL, Moments

SMALL = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "resolution": 16}


def assert_close(ours, theirs, name=""):
    """The golden files' tolerance N: 1e-4 of the larger of 1 and the spread of the reference."""
    assert ours.shape == theirs.shape, name
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, theirs.std()), name


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def official(golden):
    return golden("ldm_autoencoder_kl")


@pytest.fixture(scope="module")
def model(official) -> AutoencoderKL:
    abstract = jax.eval_shape(lambda: AutoencoderKL(**SMALL, rngs=nnx.Rngs(0)))
    weights = {key[2:]: value for key, value in official.items() if key.startswith("w/")}
    return load_state_dict(abstract, weights, autoencoder_entries(abstract, LDM))


def test_encoder_matches_the_official_one(official, model):
    images = nhwc(official["in/x"])
    moments = jax.jit(lambda model, images: model.encode(images))(model, images)
    latents = nhwc(official["in/noise"])
    assert_close(moments.mean, nhwc(official["out/mean"]), "mean")
    assert_close(moments.logvar, nhwc(official["out/logvar"]), "logvar")
    assert_close(moments.std, nhwc(official["out/std"]), "std")
    assert_close(moments.sample(latents), nhwc(official["out/sample"]), "sample")
    raw = model.quant_conv(model.encoder(images))
    assert_close(raw, nhwc(official["out/moments"]), "moments")
    np.testing.assert_allclose(moments.kl(), official["out/kl"], rtol=1e-4)
    nll = moments.negative_log_likelihood(nhwc(official["in/nll_at"]))
    np.testing.assert_allclose(nll, official["out/nll"], rtol=1e-4)


def test_decoder_matches_the_official_one(official, model):
    decode = jax.jit(lambda model, latents: model.decode(latents))
    assert_close(decode(model, nhwc(official["in/z"])), nhwc(official["out/decode"]), "decode")
    mode = nhwc(official["out/mean"])
    assert_close(decode(model, mode), nhwc(official["out/reconstruction"]), "reconstruction")


def test_every_recorded_layer_matches_the_official_one(official, model, recorded_layers):
    recorded = {key.removeprefix("out/act/"): value for key, value in official.items() if key.startswith("out/act/")}
    # The official decoder was recorded as it reconstructed `in/x` from the mode.
    acts = recorded_layers(model, nhwc(official["in/x"])[:1], nhwc(official["out/mean"])[:1])
    assert acts.keys() == recorded.keys()
    for name, theirs in recorded.items():
        assert_close(acts[name], nhwc(theirs), name)


@pytest.mark.parametrize(
    ("name", "total", "attending_levels"),
    [
        ("kl-f4", 55_312_063, []),
        ("kl-f8", 83_653_863, []),
        ("kl-f16", 69_610_963, [4]),
        ("kl-f32", 103_880_131, [4, 5]),
        ("sd-vae", 83_653_863, []),
    ],
)
def test_published_models_have_their_published_shape(name, total, attending_levels):
    model = jax.eval_shape(lambda: AutoencoderKL(**AUTOENCODERS[name], rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == total
    factor = 8 if name == "sd-vae" else int(name.removeprefix("kl-f"))
    assert model.layout.downsampling == factor
    for part, blocks in ((model.encoder, 2), (model.decoder, 3)):
        attentions = {i: len(level.attentions) for i, level in enumerate(part.levels) if level.attentions}
        assert attentions == dict.fromkeys(attending_levels, blocks)
    images = jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32)
    moments = jax.eval_shape(lambda model, images: model.encode(images), model, images)
    assert moments.mean.shape == (2, 256 // factor, 128 // factor, model.embed_dim)
    decoded = jax.eval_shape(lambda model, latents: model.decode(latents), model, moments.mean)
    assert decoded.shape == images.shape


def test_bfloat16_computes_in_bfloat16_and_stays_close(official, model):
    half = jax.eval_shape(lambda: AutoencoderKL(**SMALL, dtype="bfloat16", rngs=nnx.Rngs(0)))
    half = jax.tree.unflatten(jax.tree.structure(half), jax.tree.leaves(model))
    images, latents = nhwc(official["in/x"]), nhwc(official["in/z"])
    assert jax.eval_shape(half.encoder.levels[0], half.encoder.conv_in(images)).dtype == jnp.bfloat16
    assert jax.eval_shape(half.encoder, images).dtype == jnp.bfloat16
    assert jax.eval_shape(half.decode, latents).dtype == jnp.float32
    moments = jax.jit(lambda model, images: model.encode(images))(half, images)
    assert moments.mean.dtype == moments.logvar.dtype == jnp.float32
    reference = nhwc(official["out/mean"])
    error = np.abs(moments.mean - reference).max() / reference.std()
    assert 1e-4 < error < 0.1


def test_moments_are_a_diagonal_gaussian():
    standard = Moments(jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3, 4, 5)))
    np.testing.assert_array_equal(standard.kl(), np.zeros(2))
    np.testing.assert_allclose(standard.negative_log_likelihood(jnp.zeros((2, 3, 4, 5))), 30 * np.log(2 * np.pi), 1e-6)
    shifted = Moments(jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 2 * np.log(0.5).astype(np.float32)))
    np.testing.assert_allclose(shifted.kl(), 2 * (-np.log(0.5) + (0.25 + 9) / 2 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(shifted.sample(jnp.ones((1, 1, 1, 2))), np.full((1, 1, 1, 2), 3.5), rtol=1e-6)


def test_logvar_is_clamped(model):
    model = jax.tree.map(lambda leaf: leaf, model)
    model.quant_conv.bias[...] = jnp.array([0, 0, 0, 0, 100.0, -100.0, 20.5, 3.0])
    model.quant_conv.kernel[...] = jnp.zeros((8, 8))
    logvar = jax.jit(lambda model, images: model.encode(images))(model, jnp.zeros((1, 4, 4, 3))).logvar
    np.testing.assert_array_equal(logvar[0, 0, 0], [20, -30, 20, 3])


def test_attention_resolution_that_no_level_has():
    with pytest.raises(UserError, match=r"^autoencoder\.attn_resolutions has 12, .* levels have \[16, 8\]$"):
        AutoencoderKL(**(SMALL | {"attn_resolutions": (12,)}), rngs=nnx.Rngs(0))
