"""The VQ autoencoder and its quantiser against the official ones, their published sizes, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.autoencoder import load_first_stage
from diffusion_jax.interop.autoencoder_names import LDM, autoencoder_entries
from diffusion_jax.interop.mapping import dump_state_dict, load_state_dict
from diffusion_jax.models.autoencoder import quantizer
from diffusion_jax.models.autoencoder.autoencoder import VQ_AUTOENCODERS, AutoencoderVQ
from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES, VQConfig
from diffusion_jax.models.autoencoder.quantizer import VectorQuantizer, codebook_loss, codebook_use
from diffusion_jax.schema import Section

SMALL = {
    "ch": 32,
    "ch_mult": (2, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resolution": 16,
    "z_channels": 3,
    "embed_dim": 3,
    "num_codes": 48,
}


def assert_close(ours, theirs):
    """The golden files' tolerance N: 1e-4 of the larger of 1 and the spread of the reference."""
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, theirs.std())


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def official(golden):
    return golden("ldm_vq")


@pytest.fixture(scope="module")
def weights(official):
    return {key[2:]: value for key, value in official.items() if key.startswith("w/")}


@pytest.fixture(scope="module")
def model(weights) -> AutoencoderVQ:
    abstract = jax.eval_shape(lambda: AutoencoderVQ(**SMALL, rngs=nnx.Rngs(0)))
    return load_state_dict(abstract, weights, autoencoder_entries(abstract, LDM))


def quantized(model: AutoencoderVQ, latents: np.ndarray):
    latents = jnp.asarray(latents)
    codes, indices = model.quantizer(latents)
    return codes, indices, codebook_loss(latents, model.quantizer.lookup(indices))


def test_encoder_and_codes_match_the_official_ones(official, model):
    encoded = jax.jit(lambda model, images: model.encode(images))(model, nhwc(official["in/x"]))
    assert_close(encoded, nhwc(official["out/prequant"]))
    np.testing.assert_array_equal(official["out/interface_encode"], official["out/prequant"])
    for given, prefix, names in (
        (nhwc(official["out/prequant"]), "", ("quant", "emb_loss", "indices")),
        (nhwc(official["in/z"]), "z_", ("quant", "emb_loss", "indices")),
    ):
        codes, indices, loss = quantized(model, given)
        assert indices.shape == given.shape[:-1] and indices.dtype == jnp.int32
        np.testing.assert_array_equal(indices.reshape(-1), official[f"out/{prefix}{names[2]}"])
        assert_close(codes, nhwc(official[f"out/{prefix}{names[0]}"]))
        np.testing.assert_allclose(loss, official[f"out/{prefix}{names[1]}"], rtol=1e-5)
        distances = np.square(given.reshape(-1, 1, 3) - np.asarray(model.quantizer.codebook[...])).sum(-1)
        nearest, second = np.sort(distances, axis=1)[:, :2].T
        assert (second - nearest).min() >= {"": 0.999 * official["out/index_margin"], "z_": 5e-3}[prefix]
    entries = model.quantizer.lookup(official["out/z_indices"].reshape(2, 6, 8))
    assert_close(entries, nhwc(official["out/codebook_entry"]))


def test_decoder_matches_the_official_one_with_and_without_quantisation(official, model):
    decode = jax.jit(lambda model, latents, quantize: model.decode(latents, quantize=quantize), static_argnums=2)
    z = nhwc(official["in/z"])
    assert_close(decode(model, z, True), nhwc(official["out/interface_decode"]))
    assert_close(decode(model, z, False), nhwc(official["out/interface_decode_not_quantized"]))
    assert_close(decode(model, nhwc(official["out/prequant"]), True), nhwc(official["out/reconstruction"]))


def test_every_recorded_layer_matches_the_official_one(official, model, recorded_layers):
    recorded = {key.removeprefix("out/act/"): value for key, value in official.items() if key.startswith("out/act/")}
    # The official decoder was recorded as it reconstructed `in/x` from the codes.
    acts = recorded_layers(model, nhwc(official["in/x"])[:1], nhwc(official["out/quant"])[:1])
    assert acts.keys() == recorded.keys()
    for name, theirs in recorded.items():
        assert_close(acts[name], nhwc(theirs))


def test_weights_go_back_under_their_official_names(weights, model):
    written = dump_state_dict(model, autoencoder_entries(model, LDM))
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("name", "total", "attending_levels"),
    [
        ("vq-f4", 55_322_782, []),
        ("vq-f4-noattn", 53_219_486, []),
        ("vq-f8", 67_717_295, [3]),
        ("vq-f8-n256", 67_652_783, [3]),
        ("vq-f16", 69_593_371, [4]),
    ],
)
def test_published_models_have_their_published_shape(name, total, attending_levels):
    stage = VQConfig(preset=name).abstract()
    model = stage.autoencoder
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == total
    factor = int(name.split("-")[1].removeprefix("f"))
    assert stage.latent_shape((512, 256), 3) == (512 // factor, 256 // factor, VQ_AUTOENCODERS[name]["z_channels"])
    for part in (model.encoder, model.decoder):
        assert [i for i, level in enumerate(part.levels) if level.attentions] == attending_levels
        assert (part.mid.attention is None) == (name == "vq-f4-noattn")
    halves = [sum(leaf.size for leaf in jax.tree.leaves(half)) for half in (model.encoder, model.decoder)]
    split = {"vq-f4": [22_337_411, 32_960_771], "vq-f8": [27_397_764, 40_253_955]}
    assert halves == split.get(name, halves)


@pytest.mark.parametrize("chunk", [7, 100, 1024])
def test_nearest_code_is_that_of_an_exhaustive_search(monkeypatch, chunk):
    monkeypatch.setattr(quantizer, "CODES_AT_ONCE", chunk)
    codebook = VectorQuantizer(100, 4, rngs=nnx.Rngs(0))
    codes = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    codes[71] = codes[12]  # the lower of two equal codes wins
    codebook.codebook[...] = jnp.asarray(codes)
    latents = np.random.default_rng(1).normal(size=(3, 5, 7, 4)).astype(np.float32)
    latents[0, 0, 0] = codes[71]
    distances = ((latents[..., None, :].astype(np.float64) - codes) ** 2).sum(-1)
    indices = jax.jit(lambda codebook, latents: codebook.nearest(latents))(codebook, latents)
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    assert indices[0, 0, 0] == 12


def test_codebook_starts_uniform_within_one_over_its_size():
    codes = VectorQuantizer(512, 8, rngs=nnx.Rngs(0)).codebook[...] * 512
    assert 0.99 < np.abs(codes).max() <= 1 and abs(np.std(codes) - 3**-0.5) < 0.01
    with pytest.raises(UserError, match=r"^autoencoder\.num_codes=0: must be at least 1$"):
        VectorQuantizer(0, 8, rngs=nnx.Rngs(0))


def test_gradients_pass_straight_through_and_never_reach_the_codebook_by_that_way():
    codebook = VectorQuantizer(16, 2, rngs=nnx.Rngs(0))
    latents, probe = jax.random.normal(jax.random.key(0), (2, 5, 2)), jax.random.normal(jax.random.key(1), (2, 5, 2))
    to_latents, to_codes = jax.grad(lambda z, book: jnp.sum(probe * book(z).latents), (0, 1))(latents, codebook)
    np.testing.assert_array_equal(to_latents, probe)
    np.testing.assert_array_equal(to_codes.codebook[...], np.zeros((16, 2)))


@pytest.mark.parametrize(("legacy", "slow", "fast"), [(True, "codes", "latents"), (False, "latents", "codes")])
def test_beta_slows_the_codes_in_the_legacy_order_and_the_latents_in_the_intended_one(legacy, slow, fast):
    latents, codes = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    moves = jax.grad(lambda z, e: codebook_loss(z, e, beta=0.1, legacy=legacy), (0, 1))(latents, codes)
    moves = dict(zip(("latents", "codes"), moves, strict=True))
    full = 2 * (latents - codes) / latents.size
    sign = {"latents": 1, "codes": -1}
    np.testing.assert_allclose(moves[slow], 0.1 * sign[slow] * full, rtol=1e-5)
    np.testing.assert_allclose(moves[fast], sign[fast] * full, rtol=1e-5)


def test_use_and_perplexity_of_a_codebook():
    even = codebook_use(jnp.arange(12).reshape(3, 4) % 4, 8)
    np.testing.assert_allclose([even["codebook_use"], even["perplexity"]], [0.5, 4.0], rtol=1e-6)
    skewed = codebook_use(jnp.array([0, 0, 0, 5]), 8)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose([skewed["codebook_use"], skewed["perplexity"]], [0.25, np.exp(entropy)], rtol=1e-6)


def test_first_stage_hands_out_latents_before_quantisation(official, weights, tmp_path):
    from safetensors.numpy import save_file

    save_file(weights | {"loss.discriminator.main.0.bias": np.zeros(1)}, tmp_path / "vq.safetensors")
    arguments = SMALL | {"weights": str(tmp_path / "vq.safetensors"), "scale": 2.0}
    section = Section(FIRST_STAGES).build("autoencoder", {"name": "vq", "preset": "vq-f8", **arguments})
    stage = section.build(load_first_stage, seed=0)
    latents = jax.jit(lambda stage, images: stage.encode(images, jnp.ones((2, 6, 8, 3))))(stage, nhwc(official["in/x"]))
    assert stage.latent_shape((12, 16), 3) == latents.shape[1:]
    assert_close(latents / 2, nhwc(official["out/prequant"]))
    decode = jax.jit(lambda stage, latents: stage.decode(latents))
    z = 2 * nhwc(official["in/z"])
    assert_close(decode(stage, z), nhwc(official["out/interface_decode"]))
    raw = VQConfig(**arguments, quantize=False).build(load_first_stage, seed=0)
    assert_close(decode(raw, z), nhwc(official["out/interface_decode_not_quantized"]))


def test_vq_sections_are_checked(tmp_path):
    with pytest.raises(UserError, match=r"autoencoder\.preset='vq-f4-noatt' must be .* did you mean 'vq-f4-noattn'"):
        Section(FIRST_STAGES).complete("autoencoder", {"name": "vq", "preset": "vq-f4-noatt"})
    with pytest.raises(UserError, match=r"^autoencoder\.scale=-1\.0 must be positive$"):
        VQConfig(scale=-1.0)
    with pytest.raises(UserError, match=r"^autoencoder\.weights is not set"):
        VQConfig().build(load_first_stage, 0)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(UserError, match=r"describes an AutoencoderKL, but autoencoder\.name is 'vq': set it to 'kl'$"):
        VQConfig(weights=str(tmp_path)).build(load_first_stage, 0)
