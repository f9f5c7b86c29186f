"""Every shipped config: its smoke form runs, and its full form is the published model."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import load_config
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.loop import train
from diffusion_jax.training.system import SCHEMA, DatasetFacts, System

CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))
PUBLISHED = {
    "imagenet256_dit:XL/2": 674_834_720,
    "imagenet256_dit:B/4": 130_426_496,
    "imagenet256_sit:XL/2": 674_816_272,
    "imagenet256_lightningdit:": 674_924_944,
    "imagenet256_ldm8_transformer:g": 407_290_896,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_smoke_form_trains_two_steps_and_draws(path, tmp_path):
    config = load_config(f"{path}:smoke", [], SCHEMA)
    train(config, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    if config.train.sample_every:
        with Image.open(tmp_path / "samples" / "00000002.png") as sheet:
            assert np.ptp(np.asarray(sheet)) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_form_has_the_published_number_of_parameters(name):
    file, _, variant = name.partition(":")
    config = load_config(f"configs/{file}.py:{variant}", [], SCHEMA)
    system = System(config, DatasetFacts(1000, (), "ImageNet"))
    assert system.latent_shape == (32, 32, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(system.abstract_model)) == PUBLISHED[name]
