"""The first stage's losses against the official ones, and its gradients against differentiating the formula whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.autoencoding.losses import KLLoss, VQLoss, hinge, vanilla
from diffusion_jax.autoencoding.objective import (
    DiscriminatorState,
    Generator,
    Reconstruction,
    discriminator_gradient,
    generator_gradient,
    generator_losses,
    reconstruct,
)
from diffusion_jax.errors import UserError
from diffusion_jax.interop.discriminator import load_discriminator
from diffusion_jax.models.autoencoder.autoencoder import AutoencoderKL, AutoencoderVQ, Moments
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator

# Compiling is nearly all that these tests do.
QUICK = {"xla_backend_optimization_level": 0}
SMALL = {
    "ch": 4,
    "ch_mult": (1,),
    "num_res_blocks": 1,
    "mid_attention": False,
    "norm_groups": 2,
    "z_channels": 2,
    "embed_dim": 2,
}


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("step", [99, 100])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_terms_match_the_official_ones(golden, kind, step):
    official = golden("ldm_autoencoder_loss")
    kwargs = {"perceptual_weight": 0.0, "disc_start": 100}
    loss = KLLoss(**kwargs, disc_weight=0.5, learn_logvar=True) if kind == "kl" else VQLoss(**kwargs, disc_weight=0.8)
    prefix = "w/discriminator."
    weights = {key.removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    abstract = jax.eval_shape(lambda: PatchDiscriminator(num_layers=1, rngs=nnx.Rngs(0)))
    opponent = DiscriminatorState(*load_discriminator(abstract, weights))
    conv = nnx.Conv(8, 3, (3, 3), padding=1, use_bias=False, rngs=nnx.Rngs(0))
    conv.kernel[...] = official["in/last_layer"].transpose(2, 3, 1, 0)
    mean, logvar = np.split(nhwc(official["in/moments"]), 2, axis=-1)
    penalty = Moments(mean, np.clip(logvar, -30, 20)).kl().mean() if kind == "kl" else official["in/codebook_loss"]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def terms(conv, opponent, images, features, step):
        decoded = conv(features)
        made = Reconstruction(decoded, penalty)
        logvar = jnp.float32(official["in/logvar"])
        _, _, metrics = generator_losses(loss, made, features, conv, logvar, images, opponent, None, step, train=False)
        _, _, of_disc = discriminator_gradient(loss, opponent, images, decoded, step, train=False)
        return {**metrics, **of_disc, "penalty": penalty, "logvar": logvar}

    ours = terms(conv, opponent, nhwc(official["in/x"]), nhwc(official["in/h"]), jnp.int32(step))
    names = {
        "opt0/total": "loss",
        "opt0/total_loss": "loss",
        "opt0/nll_loss": "nll",
        "opt0/rec_loss": "rec_loss",
        "opt0/d_weight": "adaptive_weight",
        "opt0/disc_factor": "disc_switch",
        "opt0/g_loss": "g_loss",
        {"kl": "opt0/kl_loss", "vq": "opt0/quant_loss"}[kind]: "penalty",
        "opt1/total": "disc_loss",
        "opt1/disc_loss": "disc_loss",
        "opt1/logits_real": "logits_real",
        "opt1/logits_fake": "logits_fake",
    }
    if kind == "kl":
        names["opt0/logvar"] = "logvar"
    prefix = f"out/{kind}/step{step}/"
    recorded = {key.removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    assert recorded.pop("opt0/p_loss", 0) == 0 and "lpips" not in ours
    assert recorded.keys() == names.keys()
    for theirs, name in names.items():
        np.testing.assert_allclose(ours[name], recorded[theirs], rtol=1e-4, err_msg=theirs)


@pytest.mark.parametrize("name", ["ldm_discriminator", "ldm_discriminator_actnorm"])
def test_adversarial_losses_of_the_official_logits(golden, name):
    official = golden(name)
    real, fake = jnp.asarray(official["out/eval_real"]), jnp.asarray(official["out/eval_fake"])
    np.testing.assert_allclose(hinge(real, fake), official["out/hinge_d_loss"], rtol=1e-5)
    np.testing.assert_allclose(vanilla(real, fake), official["out/vanilla_d_loss"], rtol=1e-5)
    np.testing.assert_allclose(-fake.mean(), official["out/g_loss"], rtol=1e-5)


def drawn(make):
    """A module of random weights, without compiling its initialisers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(lambda: make(nnx.Rngs(0))),
    )


class Half(nnx.Module):
    """A stand-in for LPIPS with a gradient: half the mean squared difference."""

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return 0.5 * ((a - b) ** 2).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("loss", "model", "listens"),
    [
        (KLLoss(disc_start=3, kl_weight=0.1, learn_logvar=True, perceptual_weight=2.0), AutoencoderKL, True),
        (VQLoss(disc_start=4, beta=0.5, legacy_beta=False), AutoencoderVQ, False),
    ],
)
def test_gradients_are_those_of_the_total(loss, model, listens):
    """Once through the autoencoder with weighed cotangents equals differentiating each term through all of it."""
    codes = {"num_codes": 12} if model is AutoencoderVQ else {}

    autoencoder = drawn(lambda rngs: model(**SMALL, **codes, rngs=rngs))
    discriminator = drawn(lambda rngs: PatchDiscriminator(num_layers=1, ndf=4, rngs=rngs))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(autoencoder, discriminator, images, noise):
        opponent = DiscriminatorState(discriminator, discriminator.init_stats())
        generator = Generator(autoencoder, jnp.float32(0.3))
        ours, made, stats, metrics = generator_gradient(loss, generator, images, noise, opponent, Half(), jnp.int32(3))

        def terms(generator):
            result, _ = reconstruct(loss, generator.autoencoder, images, noise)
            residual = jnp.abs(images - result.images)
            residual += loss.perceptual_weight * Half()(images, result.images)[:, None, None, None]
            if isinstance(loss, KLLoss):
                nll = (residual / jnp.exp(generator.logvar) + generator.logvar).sum() / images.shape[0]
            else:
                nll = residual.mean()
            g = -discriminator(result.images, opponent.stats, train=True)[0].mean()
            return jnp.stack([nll, g, result.penalty])

        each = jax.jacrev(terms)(generator)  # every leaf [3, ...]
        kernel = each.autoencoder.decoder.conv_out.kernel[...]
        norms = jnp.sqrt(jnp.sum(kernel**2, axis=(1, 2, 3, 4)))
        weight = jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4) * loss.disc_weight
        weights = jnp.stack([1.0, weight if listens else 0.0, loss.penalty_weight])
        theirs = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), each)
        return ours, metrics, theirs, weight, weights @ terms(generator), made, stats

    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    noise = np.ones((2, 8, 8, 2), np.float32)
    ours, metrics, theirs, weight, total, made, stats = both(autoencoder, discriminator, images, noise)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, leaf, rtol=1e-3, atol=1e-4 * np.abs(leaf).max() + 1e-6)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(theirs))
    assert made.images.shape == images.shape and np.any(stats[0].mean != 0)


def test_without_a_discriminator_or_lpips_their_terms_are_gone():
    loss = VQLoss()
    made = Reconstruction(jnp.zeros((1, 2, 2, 3)), jnp.float32(0.5))
    pull, stats, metrics = generator_losses(
        loss, made, None, None, jnp.float32(0), jnp.full((1, 2, 2, 3), 0.25), None, None, jnp.int32(10**6)
    )
    assert metrics.keys() == {"loss", "l1", "rec_loss", "nll"} and stats == ()
    np.testing.assert_allclose(pull.total, 0.75)
    np.testing.assert_allclose(pull.images, np.full((1, 2, 2, 3), -1 / 12), rtol=1e-6)


def test_squared_differences_where_they_are_asked_for():
    loss = VQLoss(pixel_loss="l2")
    made = Reconstruction(jnp.zeros((1, 2, 2, 3)), jnp.float32(0.5))
    images = jnp.full((1, 2, 2, 3), 0.25)
    pull, _, metrics = generator_losses(loss, made, None, None, jnp.float32(0), images, None, None, jnp.int32(0))
    np.testing.assert_allclose([metrics["l1"], metrics["rec_loss"], pull.total], [0.25, 0.0625, 0.5625])
    np.testing.assert_allclose(pull.images, np.full((1, 2, 2, 3), -0.5 / 12), rtol=1e-6)


def test_the_variance_is_fixed_unless_it_is_to_be_learned():
    residual = jnp.ones((2, 4, 4, 3))
    for learn, expected in ((False, 0.0), (True, 48 * (1 - np.exp(-0.5)))):
        loss = KLLoss(learn_logvar=learn)
        gradient = jax.grad(lambda s, loss=loss: loss.negative_log_likelihood(residual, s))(jnp.float32(0.5))
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_losses_of_another_kind_or_with_negative_weights_are_refused():
    with pytest.raises(TypeError, match="KLLoss does not train a AutoencoderVQ"):
        jax.eval_shape(
            lambda key: reconstruct(
                KLLoss(),
                AutoencoderVQ(**SMALL, num_codes=4, rngs=nnx.Rngs(key)),
                jnp.zeros((1, 4, 4, 3)),
                jnp.zeros((1, 2, 2, 2)),
            )[0],
            jax.random.key(0),
        )
    with pytest.raises(UserError, match=r"^loss\.kl_weight=-1\.0: must be at least 0$"):
        KLLoss(kl_weight=-1.0)
    assert KLLoss(logvar_init=-2.0).logvar_init == -2
