"""The training step of a first stage: who moves when, in which order, and on which devices it does not depend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax import keys
from diffusion_jax.autoencoding.losses import KLLoss, VQLoss
from diffusion_jax.autoencoding.objective import discriminator_gradient, reconstruct
from diffusion_jax.autoencoding.step import AutoencoderStep
from diffusion_jax.models.autoencoder.autoencoder import AutoencoderKL, AutoencoderVQ
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator
from diffusion_jax.optim.ema_profiles import ConstantEMA
from diffusion_jax.optim.optimizer import adamw

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


def drawn(make):
    """A module of random weights, without compiling its initialisers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)),
        jax.eval_shape(lambda: make(nnx.Rngs(0))),
    )


def make_step(loss) -> AutoencoderStep:
    optimizer, _ = adamw(lr=5e-3, b1=0.5, b2=0.9)
    return AutoencoderStep(
        loss=loss,
        optimizer=optimizer,
        opponent_optimizer=optimizer,
        ema=ConstantEMA(max_decay=0.5),
        latent_shape=(8, 8, 2),
        seed=3,
        flip=True,
    )


def distance(a, b) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


def test_both_networks_move_when_they_should_and_in_order(images):
    step = make_step(KLLoss(disc_start=1))
    autoencoder = drawn(lambda rngs: AutoencoderKL(**SMALL, rngs=rngs))
    discriminator = drawn(lambda rngs: PatchDiscriminator(num_layers=1, ndf=4, rngs=rngs))
    start = step.init(autoencoder, discriminator)
    compiled = jax.jit(step, compiler_options=QUICK)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = {"image": jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))}
    first, metrics = compiled(start, None, split)

    assert first.step == 1 and distance(first.model.autoencoder, start.model.autoencoder) > 1e-4
    assert distance(first.opponent.model, start.opponent.model) == 0
    assert distance(first.opponent.stats, start.opponent.stats) > 1e-3
    assert metrics["disc_loss"] == 0 and metrics["disc_switch"] == 0 and metrics["adaptive_weight"] > 0
    assert first.model.logvar == 0
    average = jax.tree.map(lambda a, b: (a + b) / 2, start.model, first.model)
    assert distance(first.ema, average) < 1e-6

    second, metrics = compiled(first, None, split)
    assert distance(second.opponent.model, first.opponent.model) > 1e-4
    assert metrics["disc_loss"] > 0 and metrics["disc_switch"] == 1

    # The discriminator judged what the autoencoder made after its move, from a draw of its own; here on one device.
    def by_hand(autoencoder, opponent, images):
        index, number = jnp.arange(8), jnp.int32(1)
        prepared = step.prepare(images, number, index)
        noise = keys.normal(keys.purpose_key(3, "posterior_again", number), index, (8, 8, 2))
        fake, _ = reconstruct(step.loss, autoencoder, prepared, noise)
        return discriminator_gradient(step.loss, opponent, prepared, fake.images, number)[2], prepared

    new, before = jax.device_get((second.model.autoencoder, first.opponent))
    expected, prepared = jax.jit(by_hand, compiler_options=QUICK)(new, before, images)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    plain = images.astype(np.float32) / 127.5 - 1
    flipped = [not np.allclose(a, b, atol=1e-6) for a, b in zip(prepared, plain, strict=True)]
    assert 0 < sum(flipped) < 8
    mirrored = np.where(np.array(flipped)[:, None, None, None], plain[:, :, ::-1], plain)
    np.testing.assert_allclose(prepared, mirrored, atol=1e-6)


def test_vq_with_actnorms_and_without_an_opponent(images):
    step = make_step(VQLoss(disc_start=5))
    autoencoder = drawn(lambda rngs: AutoencoderVQ(**SMALL, num_codes=12, rngs=rngs))
    alone = step.init(autoencoder, None)
    after, metrics = jax.eval_shape(step, alone, None, {"image": images})
    assert after.opponent is None and "g_loss" not in metrics and "perplexity" in metrics

    discriminator = drawn(lambda rngs: PatchDiscriminator(num_layers=1, ndf=4, norm="actnorm", rngs=rngs))
    start = step.init(autoencoder, discriminator)
    compiled = jax.jit(step, compiler_options=QUICK)
    first, metrics = compiled(start, None, {"image": images})
    assert metrics.keys() >= {"loss", "codebook_use", "perplexity", "psnr", "grad_norm", "disc_grad_norm"}
    assert distance(first.model.autoencoder.quantizer, start.model.autoencoder.quantizer) > 1e-4
    # The first batch sets the actnorms; from then on only gradients do, and there are none before `disc_start`.
    assert distance(first.opponent.model.norms[0], start.opponent.model.norms[0]) > 1e-2
    assert distance(first.opponent.model.convs[0], start.opponent.model.convs[0]) == 0
    second, _ = compiled(first, None, {"image": images})
    assert distance(second.opponent.model, first.opponent.model) == 0
