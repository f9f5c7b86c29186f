"""The table of tiny forms: one for each kind of part, and what a smoke form is made of."""

import copy
import subprocess
import sys

from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES
from diffusion_jax.models.backbones import BACKBONES
from diffusion_jax.smoke import TINY_FIRST_STAGES, TINY_MODELS, smoke_form, tiny_options

CONFIG = {
    "data": {"name": "tfds:cifar10", "image_size": 32, "flip": True},
    "autoencoder": {"name": "vq", "preset": "vq-f8"},
    "model": {"name": "dit", "depth": 28, "width": 1152, "heads": 16, "patch_size": 4, "rope": True},
    "loss": {"name": "simple"},
    "train": {"steps": 1000, "batch_size": 256, "save_every": 10},
    "sampler": {"name": "ddim", "steps": 250},
    "sample": {"batch_size": 128},
}


def test_every_model_and_first_stage_has_a_tiny_form():
    assert TINY_MODELS.keys() == {*BACKBONES, "noisy_classifier"}
    assert TINY_FIRST_STAGES.keys() == FIRST_STAGES.keys()


def test_a_smoke_form_changes_sizes_and_keeps_the_rest():
    before = copy.deepcopy(CONFIG)
    form = smoke_form(CONFIG)
    assert before == CONFIG
    assert form["data"] == {"name": "digits", "image_size": 8, "crop": "adm", "flip": True}
    assert form["model"] == {"name": "dit", "depth": 2, "width": 32, "heads": 2, "patch_size": 2, "rope": True}
    assert form["autoencoder"]["weights"] == "random" and form["autoencoder"]["preset"] == "vq-f8"
    assert form["train"] == {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2, "save_every": 10}
    assert (form["sampler"]["steps"], form["sample"]["batch_size"]) == (2, 8)


def test_a_config_may_change_its_smoke_form():
    form = smoke_form(CONFIG, model={"depth": 3}, autoencoder={"weights": "file"})
    assert (form["model"]["depth"], form["model"]["width"]) == (3, 32)
    assert form["autoencoder"]["weights"] == "file"


def test_classifiers_draw_nothing_and_first_stages_are_evaluated():
    classifier = smoke_form({**CONFIG, "kind": {"name": "classifier"}})
    assert "sample_every" not in classifier["train"] and classifier["sampler"] == CONFIG["sampler"]
    first_stage = {"kind": {"name": "first_stage"}, "autoencoder": {"name": "kl"}, "loss": {"name": "kl"}, "train": {}}
    with_adversary = smoke_form({**first_stage, "discriminator": {"name": "patchgan", "num_layers": 3}})
    assert with_adversary["discriminator"] == {"name": "patchgan", "num_layers": 1, "ndf": 8}
    assert with_adversary["loss"]["disc_start"] == 1 and with_adversary["train"]["eval_every"] == 2
    assert "weights" not in with_adversary["autoencoder"] and "model" not in with_adversary
    alone = smoke_form({**first_stage, "discriminator": {"name": "none"}})
    assert alone["discriminator"] == {"name": "none"} and alone["loss"] == {"name": "kl"}


def test_tiny_options_have_the_levels_that_smoke_forms_do_without():
    assert tiny_options("dit") == TINY_MODELS["dit"]
    for name in ("ascend", "unet"):
        assert len(tiny_options(name)["channel_mult"]) == 2 > len(TINY_MODELS[name]["channel_mult"])


def test_the_table_loads_nothing_heavy():
    code = "import sys, diffusion_jax.smoke; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
