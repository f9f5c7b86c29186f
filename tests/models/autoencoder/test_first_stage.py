"""First stages as the diffusion trainer uses them: shapes, scaling, and no weights that nobody asked for."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.autoencoder import AUTOENCODERS, AutoencoderKL
from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES, Identity, KLConfig
from diffusion_jax.schema import Section

QUICK = {"xla_backend_optimization_level": 0}
SMALL = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "weights": "random"}


def no_files(first_stage, path):
    raise AssertionError(f"read {path}")


@pytest.fixture(scope="module")
def stage():
    return KLConfig(**SMALL).build(no_files, seed=3)


def test_identity_leaves_pixels_alone():
    stage = FIRST_STAGES["identity"]().build(no_files, seed=0)
    images = jnp.linspace(-1, 1, 2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    assert stage.latent_shape((4, 6), 3) == (4, 6, 3)
    assert stage.latent_shape(8, 1) == (8, 8, 1)
    np.testing.assert_array_equal(stage.decode(stage.encode(images, jnp.ones_like(images))), images)
    assert jax.tree.leaves(stage) == []
    assert jax.jit(lambda stage: stage)(stage) == Identity()


def test_latents_are_scaled_posterior_samples(stage):
    assert stage.latent_shape((8, 16), 3) == (4, 8, 4)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 16, 3), minval=-1, maxval=1)
    noise = jax.random.normal(jax.random.key(1), (2, 4, 8, 4))

    @jax.jit
    def both_ways(stage, images, noise):
        moments, latents = stage.autoencoder.encode(images), stage.encode(images, noise)
        return moments, latents, stage.autoencoder.decode(latents / 0.18215), stage.decode(latents)

    moments, latents, unscaled, decoded = both_ways(stage, images, noise)
    np.testing.assert_allclose(latents, 0.18215 * (moments.mean + moments.std * noise), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, unscaled, rtol=1e-3, atol=1e-4)
    assert decoded.shape == images.shape


def test_random_weights_follow_the_seed(stage):
    again, other = (KLConfig(**SMALL).build(no_files, seed=seed) for seed in (3, 4))
    assert jax.tree.structure(again) == jax.tree.structure(stage) == jax.tree.structure(KLConfig(**SMALL).abstract())
    kernels = [each.autoencoder.decoder.conv_out.kernel[...] for each in (stage, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01


def test_weights_are_never_random_by_accident():
    with pytest.raises(UserError, match=r"^autoencoder\.weights is not set: .*'random'"):
        KLConfig().build(no_files, seed=0)


def test_weights_are_read_into_the_described_architecture():
    read = []
    KLConfig(preset="kl-f16", weights="some/file", scale=0.2).build(lambda stage, path: read.append((stage, path)), 0)
    ((stage, path),) = read
    assert path == "some/file" and stage.scale == np.float32(0.2)
    assert stage.latent_shape(256, 3) == (16, 16, 16)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(stage.autoencoder))


def test_a_scale_without_a_publication_must_be_given():
    with pytest.raises(UserError, match=r"^autoencoder\.scale is not set and kl-f4 has no published one"):
        KLConfig(preset="kl-f4").abstract()
    with pytest.raises(UserError, match=r"^autoencoder\.scale=0\.0 must be positive$"):
        KLConfig(scale=0.0)


CHANNELS = {"normalize": "channel", "channel_mean": (1.0, -2.0, 0.5, 3.0), "channel_std": (0.5, 2.0, 4.0, 1.0)}


def test_channels_are_normalised_one_by_one(stage):
    mean, std = (np.float32(CHANNELS[name]) for name in ("channel_mean", "channel_std"))
    normalised = KLConfig(**SMALL, **CHANNELS).build(no_files, seed=3)
    rng = np.random.default_rng(0)
    posterior = {name: rng.normal(size=(2, 4, 4, 4)).astype(np.float32) for name in ("mean", "std")}
    noise = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    drawn = posterior["mean"] + posterior["std"] * noise
    np.testing.assert_allclose(normalised.draw(posterior, noise), (drawn - mean) / std, rtol=1e-5, atol=1e-6)
    decode = jax.jit(lambda stage, latents: stage.decode(latents), compiler_options=QUICK)
    want = decode(stage, drawn * np.float32(0.18215))
    np.testing.assert_allclose(decode(normalised, (drawn - mean) / std), want, rtol=1e-3, atol=1e-4)

    vq = FIRST_STAGES["vq"](**SMALL, **CHANNELS, preset="vq-f8", num_codes=5, attn_resolutions=()).build(
        no_files, seed=0
    )
    codes = vq.autoencoder.quantizer.codebook[...]
    np.testing.assert_allclose(vq.codebook, (codes - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vq.draw(posterior, noise), (posterior["mean"] - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"normalize": "channel"}, "normalize='channel' needs means and deviations: name the folder"),
        ({"channel_mean": (0.0,) * 4}, "channel_mean and autoencoder.channel_std: set both or neither"),
        ({**CHANNELS, "normalize": "scale"}, "channel_mean has no effect: set autoencoder.normalize='channel'"),
        (
            {**CHANNELS, "channel_std": (1.0, 0.0, 1.0, 1.0)},
            r"channel_std=\(1.0, 0.0, 1.0, 1.0\): must all be positive",
        ),
        ({**CHANNELS, "channel_mean": (0.0,) * 3}, "channel_mean has 3 values, and the latents have 4 channels"),
    ],
)
def test_channel_statistics_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(UserError, match=f"^autoencoder.{message}"):
        KLConfig(**SMALL, **keys).abstract()


def test_images_that_do_not_fit_are_refused():
    stage = KLConfig().abstract()
    with pytest.raises(UserError, match=r"^an image size of 256×100 does not divide by 8.*: take a multiple of 8"):
        stage.latent_shape((256, 100), 3)
    with pytest.raises(UserError, match=r"^the data has 1 channels, but autoencoder\.in_channels=3: set data"):
        stage.latent_shape(256, 1)


def test_config_keys_are_the_autoencoder_s_arguments():
    section = Section(FIRST_STAGES)
    complete = section.complete("autoencoder", {"name": "kl"})
    assert complete.pop("name") == "kl"
    arguments = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"self", "rngs"}
    own = {"preset", "weights", "scale", "normalize", "channel_mean", "channel_std", "tile", "tile_stride"}
    assert complete.keys() == arguments | own
    assert section.complete("autoencoder", {"name": "identity"}) == {"name": "identity"}
    with pytest.raises(UserError, match=r"autoencoder\.preset='sd-vea' must be one of .* did you mean 'sd-vae'"):
        section.complete("autoencoder", {"name": "kl", "preset": "sd-vea"})
    for preset in AUTOENCODERS:
        assert section.build("autoencoder", {"name": "kl", "preset": preset, "scale": 1.0}).preset == preset


def test_arguments_replace_those_of_the_preset():
    model = KLConfig(preset="kl-f16", scale=1.0, attn_resolutions=(), in_channels=1).abstract().autoencoder
    assert model.layout.attention == (False,) * 5
    assert model.in_channels == 1 and model.embed_dim == 16


def test_large_latents_go_through_in_tiles(stage):
    tiled = KLConfig(**SMALL, tile=4).build(no_files, seed=3)
    assert tiled.tiling.size == 4 and tiled.tiling.stride == 2 and stage.tiling is None
    images = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3), minval=-1, maxval=1)

    @jax.jit
    def both(stage, images):
        latents = stage.encode(images, jnp.zeros((2, *stage.latent_shape((8, 12), 3))))
        return latents, stage.decode(latents)

    latents, decoded = both(tiled, images)
    left = jax.jit(lambda stage, images: stage.encode(images, jnp.zeros((2, 4, 4, 4))))(tiled, images[:, :, :8])
    assert latents.shape == (2, 4, 6, 4) and decoded.shape == images.shape
    # The first tile alone reaches the first two columns of latents.
    np.testing.assert_allclose(latents[:, :, :2], left[:, :, :2], rtol=1e-3, atol=1e-5)
    assert np.abs(latents[:, :, 3] - left[:, :, 3]).max() > 1e-4
    with pytest.raises(UserError, match=r"^autoencoder\.tile=4, tile_stride=5: need"):
        KLConfig(**SMALL, tile=4, tile_stride=5)
