"""Every shipped config: its smoke form runs, and its full form is the published model."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem
from diffusion_jax.config import load_config, override, read_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.loop import train

UNCONDITIONAL = {
    "cifar10_uvit": 44_255_328,
    "celeba64_uvit": 44_292_228,
    "cifar10_iuvit": 45_150_595,
    "celeba64_iuvit": 45_166_435,
    "celeba128_iuvit": 442_337_877,
    "lsun_church256_iuvit": 527_081_637,
    "lsun_church256_iuvit:wide": 935_559_387,
    "cifar10_ascend": 45_404_275,
    "cifar10_ascend:adm": 56_561_623,
    "cub128_ascend": 80_869_003,
    "lsun_bedroom256_ascend": 110_498_355,
}
pytestmark = pytest.mark.usefixtures("shared_compilations")
CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))
PUBLISHED = {
    "imagenet256_dit:XL/2": 674_834_720,
    "imagenet256_dit:B/4": 130_426_496,
    "imagenet256_sit:XL/2": 674_816_272,
    "imagenet256_lightningdit:": 674_924_944,
    "imagenet256_ldm8_transformer:g": 407_290_896,
}

UNETS = {  # config: (parameters, shape of what the backbone sees)
    "celebahq256_ldm4": (274_056_163, (64, 64, 3)),
    "ffhq256_ldm4": (274_056_163, (64, 64, 3)),
    "lsun_bedroom256_ldm4": (274_056_163, (64, 64, 3)),
    "lsun_church256_ldm8": (294_966_916, (32, 32, 4)),
    "imagenet256_ldm8_unet": (394_984_196 + 512_000, (32, 32, 4)),
    "imagenet256_ldm4_unet": (400_920_579 + 512_512, (64, 64, 3)),
    "cifar10_ddpm": (35_746_307, (32, 32, 3)),
    "cifar10_iddpm": (52_546_438, (32, 32, 3)),
}
FIRST_STAGES = {"autoencoder_kl_f8": 83_653_863, "autoencoder_vq_f8": 67_717_295}
# The smoke forms of the others run the same parts with other options.
SLOW = {
    *UNETS,
    "autoencoder_kl_f8",
    "shapes64_autoencoder",
    # Their smoke forms are those of cub128_ascend, cifar10_uvit, cifar10_iuvit and digits_classifier.
    "celebahq256_ascend",
    "lsun_bedroom256_ascend",
    "celeba64_uvit",
    "celeba64_iuvit",
    "celeba128_iuvit",
    "imagenet256_ldm8_classifier",
    # As imagenet256_dit, digits and cifar10_uvit, and as the runs of test_autoencoder_training.
    "imagenet256_sit",
    "imagenet256_lightningdit",
    "cifar10_dit",
    "cifar10_iuvit",
    "imagenet512_dit",
    "lsun_church256_iuvit",
    "autoencoder_vq_f8",
    # As imagenet256_dit and imagenet256_ldm4_unet.
    "shapes64_latent_dit",
    "shapes64_latent_unet",
} - {"imagenet256_ldm4_unet"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in CONFIGS],
)
def test_the_smoke_form_trains_two_steps_and_draws(path, tmp_path):
    written = read_config(f"{path}:smoke")
    config = override(written, [], kind_of(written).schema)
    train(config, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    if config.train.sample_every:
        with Image.open(tmp_path / "samples" / "00000002.png") as sheet:
            assert np.ptp(np.asarray(sheet)) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_form_has_the_published_number_of_parameters(name):
    file, _, variant = name.partition(":")
    config = load_config(f"configs/{file}.py:{variant}", [], DIFFUSION_SCHEMA)
    system = DiffusionSystem(config, DatasetFacts(1000, (), "ImageNet"))
    assert system.latent_shape == (32, 32, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(system.abstract_model)) == PUBLISHED[name]


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional_models_of_pixels_have_the_published_number_of_parameters(name):
    file, _, variant = name.partition(":")
    config = load_config(f"configs/{file}.py:{variant}", [], DIFFUSION_SCHEMA)
    system = DiffusionSystem(config, DatasetFacts(1, ("unlabelled",), "pixels"))
    side = config.data.image_size
    assert system.latent_shape == (side, side, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(system.abstract_model)) == UNCONDITIONAL[name]


@pytest.mark.parametrize("name", UNETS)
def test_unets_have_the_published_number_of_parameters(name):
    needed = ["--config.autoencoder.scale=0.22"] if name == "lsun_church256_ldm8" else []
    system = DiffusionSystem(
        load_config(f"configs/{name}.py", needed, DIFFUSION_SCHEMA), DatasetFacts(1000, (), "images")
    )
    parameters, shape = UNETS[name]
    assert system.latent_shape == shape
    assert sum(leaf.size for leaf in jax.tree.leaves(system.abstract_model)) == parameters


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_have_the_published_number_of_parameters(name):
    config = load_config(f"configs/{name}.py", [], AUTOENCODER_SCHEMA)
    system = AutoencoderSystem(config, DatasetFacts(1, (), "OpenImages"))
    state = jax.eval_shape(system.init_state)
    assert system.latent_shape == (32, 32, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.model.autoencoder)) == FIRST_STAGES[name]
    np.testing.assert_allclose(system.learning_rate(0), 4.5e-6 * config.train.batch_size)
