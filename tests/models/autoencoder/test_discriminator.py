"""The PatchGAN discriminator against the official one: outputs, running statistics, sizes, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.discriminator import discriminator_entries, load_discriminator, stats_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator

KWARGS = {
    "ldm_discriminator": {"num_layers": 2, "ndf": 16},
    "ldm_discriminator_actnorm": {"num_layers": 3, "ndf": 12, "norm": "actnorm"},
}


def assert_close(ours, theirs):
    """The golden files' tolerance N: 1e-4 of the larger of 1 and the spread of the reference."""
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, theirs.std())


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


def abstract(**kwargs) -> PatchDiscriminator:
    return jax.eval_shape(lambda: PatchDiscriminator(**kwargs, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", KWARGS)
def test_outputs_and_statistics_match_the_official_ones(golden, name):
    official = golden(name)
    weights = {key[2:]: value for key, value in official.items() if key.startswith("w/")}
    model, stats = load_discriminator(abstract(**KWARGS[name]), weights)
    judge = jax.jit(lambda model, images, stats, train: model(images, stats, train=train), static_argnums=3)
    for side in ("real", "fake"):
        logits, same = judge(model, nhwc(official[f"in/{side}"]), stats, False)
        assert_close(logits, nhwc(official[f"out/eval_{side}"]))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(stats), strict=True))
    logits, after = judge(model, nhwc(official["in/real"]), stats, True)
    assert_close(logits, nhwc(official["out/train_real"]))
    written = dump_state_dict(after, stats_entries(after))
    prefix = "out/after_train/"
    recorded = {key.removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    assert written.keys() == {key for key in recorded if not key.endswith("num_batches_tracked")}
    assert bool(written) == (name == "ldm_discriminator")
    for key, array in written.items():
        assert_close(array, recorded[key])

    official_names = dump_state_dict(model, discriminator_entries(model)) | dump_state_dict(stats, stats_entries(stats))
    assert all(np.array_equal(array, weights[key]) for key, array in official_names.items())
    assert weights.keys() - official_names.keys() == {
        key for key in weights if key.endswith(("num_batches_tracked", "initialized"))
    }


@pytest.mark.parametrize(("num_layers", "total", "logits"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_published_sizes(num_layers, total, logits):
    model = abstract(num_layers=num_layers)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == total
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    out, stats = jax.eval_shape(lambda m, x: m(x, m.init_stats(), train=True), model, images)
    assert out.shape == (2, logits, logits, 1)
    assert [leaf.mean.shape for leaf in stats] == [(128,), (256,), (512,)][:num_layers]


def test_width_stops_doubling_at_eight_times_the_first():
    assert [conv.out_features for conv in abstract(num_layers=5, ndf=8).convs] == [16, 32, 64, 64, 64]


def test_initialisation():
    model = PatchDiscriminator(num_layers=2, ndf=32, rngs=nnx.Rngs(0))
    for conv in (model.conv_in, *model.convs, model.conv_out):
        np.testing.assert_allclose(np.std(conv.kernel[...]), 0.02, rtol=0.15)
    assert model.convs[0].bias is None
    assert 0.5 < np.abs(model.conv_in.bias[...]).max() * np.sqrt(48) <= 1
    scale = np.concatenate([norm.scale[...] for norm in model.norms])
    assert abs(scale.mean() - 1) < 0.01 and 0.015 < scale.std() < 0.025
    assert all(np.all(norm.bias[...] == 0) for norm in model.norms)
    with pytest.raises(UserError, match=r"^discriminator\.num_layers=0: must be at least 1$"):
        PatchDiscriminator(num_layers=0, rngs=nnx.Rngs(0))


def test_actnorm_fits_its_first_batch():
    images = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
    rng = np.random.default_rng(0)
    described = abstract(num_layers=1, ndf=8, norm="actnorm")
    model = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), described)
    start = PatchDiscriminator(num_layers=1, ndf=1, norm="actnorm", rngs=nnx.Rngs(0)).norms[0]
    assert np.all(start.loc[...] == 0) and np.all(start.scale[...] == 1)
    assert model.init_stats() == () and model.convs[0].bias is not None

    @jax.jit
    def fit(model, images):
        fitted = model.fit_actnorms(images)
        return fitted, fitted.norms[0](fitted.convs[0](jax.nn.leaky_relu(fitted.conv_in(images), 0.2)))

    fitted, h = fit(model, images)
    np.testing.assert_allclose(np.mean(h, (0, 1, 2)), np.zeros(16), atol=1e-4)
    np.testing.assert_allclose(np.std(h, (0, 1, 2), ddof=1), np.ones(16), rtol=1e-3)
    np.testing.assert_array_equal(fitted.convs[0].kernel[...], model.convs[0].kernel[...])
