"""A config that trains a first stage becomes its parts, or is refused in one line."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem
from diffusion_jax.config import override
from diffusion_jax.data import open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError

TINY = {"ch": 4, "ch_mult": (1,), "num_res_blocks": 1, "mid_attention": False, "norm_groups": 2}


def config(**sections) -> ConfigDict:
    base = {
        "data": {"name": "shapes:images=64", "image_size": 16},
        "autoencoder": {"name": "kl", "preset": "kl-f4", **TINY, "z_channels": 2, "embed_dim": 2},
        "loss": {"name": "kl", "disc_start": 0},
        "discriminator": {"name": "patchgan", "num_layers": 1, "ndf": 4},
        "lpips": {},
        "optimizer": {"name": "adamw", "lr": 1e-3, "b1": 0.5, "b2": 0.9},
        "discriminator_optimizer": {"name": "adamw", "lr": 1e-3, "b1": 0.5, "b2": 0.9},
        "ema": {"name": "constant", "max_decay": 0.0},
        "train": {"steps": 2, "batch_size": 2},
        "mesh": {},
    }
    for name, keys in sections.items():
        base[name] = keys if "name" in keys else {**base[name], **keys}
    return override(base, [], AUTOENCODER_SCHEMA)


FACTS = DatasetFacts(8, (), "shapes")


def test_a_run_from_its_config(capsys):
    system = AutoencoderSystem(config(), FACTS)
    source = open_source(system.data)
    batch = {"image": np.stack([source[i]["image"] for i in range(2)])}
    assert system.latent_shape == (16, 16, 2)
    described = jax.eval_shape(system.init_state)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), described)
    lpips = system.load_lpips()
    assert lpips is None
    assert capsys.readouterr().err == "lpips.weights is empty: training without the perceptual loss\n"
    after, metrics = jax.eval_shape(system.step, state, lpips, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"kl", "g_loss", "disc_loss", "psnr"} <= metrics.keys() and "lpips" not in metrics

    made, quality = jax.jit(system.reconstruct, compiler_options={"xla_backend_optimization_level": 0})(
        state.ema, batch["image"]
    )
    assert made.shape == batch["image"].shape and made.dtype == np.uint8
    error = np.square(np.asarray(made).astype(float) - batch["image"]).mean((1, 2, 3))
    np.testing.assert_allclose(quality["psnr"], 10 * np.log10(255**2 / error), atol=0.1)
    assert quality["ssim"].shape == (2,)


def test_flops_count_both_networks():
    alone = AutoencoderSystem(config(discriminator={"name": "none"}), FACTS)
    assert jax.eval_shape(alone.init_state).opponent is None
    both = AutoencoderSystem(config(), FACTS)
    assert both.train_flops_per_image() > 1.2 * alone.train_flops_per_image() > 0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"name": "cache:latents", "image_size": 16}},
            r"data\.name=cache:latents: holds latents, and an autoencoder learns from",
        ),
        ({"loss": {"name": "vq"}}, r"loss 'vq' does not train a 'kl' autoencoder: set loss\.name=kl"),
        ({"train": {"microbatches": 2}}, r"train\.microbatches=2: the adaptive weight and batch norms"),
        ({"autoencoder": {"weights": "some/file"}}, r"autoencoder\.weights='some/file': training starts from random"),
        ({"data": {"channels": 1}, "lpips": {"weights": ("x",)}}, r"data\.channels=1: LPIPS compares RGB"),
        ({"data": {"channels": 1}}, r"the data has 1 channels, but autoencoder\.in_channels=3"),
        (
            {"data": {"image_size": 18}, "autoencoder": {"ch_mult": (1, 1, 1)}},
            r"an image size of 18×18 does not divide",
        ),
    ],
)
def test_parts_that_do_not_fit(sections, message):
    with pytest.raises(UserError, match=f"^{message}"):
        AutoencoderSystem(config(**sections), FACTS)
