"""Every shipped config and row: its smoke form is built or runs, and its full form is the published model."""

import pathlib
import runpy

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem
from diffusion_jax.config import load_config, override, read_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("shared_compilations")
CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))
FACTS = DatasetFacts(1000, (), "images")

PUBLISHED = {  # (parameters, shape of what the backbone sees)
    "dit:imagenet256,XL/2": (674_834_720, (32, 32, 4)),
    "dit:imagenet256,B/4": (130_426_496, (32, 32, 4)),
    "dit:imagenet512": (674_834_720, (64, 64, 4)),
    "sit:XL/2": (674_816_272, (32, 32, 4)),
    "lightningdit:": (674_924_944, (32, 32, 4)),
    "ldm_transformer:g": (407_290_896, (32, 32, 4)),
    "ldm_classifier:": (111_604_200, (32, 32, 4)),
    "ldm_unet:celebahq256-ldm4": (274_056_163, (64, 64, 3)),
    "ldm_unet:ffhq256-ldm4": (274_056_163, (64, 64, 3)),
    "ldm_unet:lsun_bedroom256-ldm4": (274_056_163, (64, 64, 3)),
    "ldm_unet:lsun_church256-ldm8": (294_966_916, (32, 32, 4)),
    "ldm_unet:imagenet256-ldm4": (400_920_579 + 512_512, (64, 64, 3)),
    "ldm_unet:imagenet256-ldm8": (394_984_196 + 512_000, (32, 32, 4)),
    "cifar10_ddpm:": (35_746_307, (32, 32, 3)),
    "cifar10_iddpm:": (52_546_438, (32, 32, 3)),
    "uvit:cifar10": (44_255_328, (32, 32, 3)),
    "uvit:celeba64": (44_292_228, (64, 64, 3)),
    "iuvit:cifar10": (45_150_595, (32, 32, 3)),
    "iuvit:celeba64": (45_166_435, (64, 64, 3)),
    "iuvit:celeba128": (442_337_877, (128, 128, 3)),
    "iuvit:lsun_church256": (527_081_637, (256, 256, 3)),
    "iuvit:lsun_church256-wide": (935_559_387, (256, 256, 3)),
    "iuvit:lsun_church256-patch8": (527_377_035, (256, 256, 3)),
    "ascend:cifar10": (45_404_275, (32, 32, 3)),
    "ascend:cifar10-adm": (56_561_623, (32, 32, 3)),
    "ascend:cub128": (80_869_003, (128, 128, 3)),
    "ascend:lsun_bedroom256": (110_498_355, (256, 256, 3)),
    "ascend:celebahq256": (110_498_355, (256, 256, 3)),
}
FIRST_STAGES = {"kl-f8": (83_653_863, 4), "vq-f8": (67_717_295, 10)}  # (parameters, batch size)
# There is no published scale of its latents.
NEEDED = {"lsun_church256-ldm8": ["--config.autoencoder.scale=0.22"]}
# The row whose smoke form runs, where it is not the default.
RUNS = {"ldm_unet": "imagenet256-ldm4,"}
# Further words, beside the tables of a file.
WORDS = {"ldm_transformer": ("g",), "lightningdit": ("modern",)}
# The smoke forms of the others run the same parts with other options.
SLOW = {
    "cifar10_ddpm",
    "cifar10_dit",
    "cifar10_iddpm",
    "iuvit",
    "ldm_autoencoder",
    "ldm_classifier",
    "lightningdit",
    "shapes64_autoencoder",
    "shapes64_latent_dit",
    "shapes64_latent_unet",
    "sit",
}


def words(path):
    """What may stand behind the colon of a config file: nothing, or a word of its tables."""
    written = runpy.run_path(str(path))
    return ["", *written.get("ROWS", ()), *written.get("SIZES", ()), *WORDS.get(path.stem, ())]


EVERY = [(path, variant) for path in CONFIGS for variant in words(path)]


COUNTED: dict[str, int] = {}


def parameters(system):
    """Parameters of what is trained; rows that share a model share the count."""
    config, size = system.config, (system.data.image_size, system.data.channels)
    key = f"{config.model} {config.conditioner} {config.prediction} {config.autoencoder} {size}"
    if key not in COUNTED:
        COUNTED[key] = sum(leaf.size for leaf in jax.tree.leaves(system.abstract_model))
    return COUNTED[key]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in CONFIGS],
)
def test_the_smoke_form_trains_two_steps_and_draws(path, tmp_path):
    written = read_config(f"{path}:{RUNS.get(path.stem, '')}smoke")
    config = override(written, [], kind_of(written).schema)
    train(config, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    if config.train.sample_every:
        with Image.open(tmp_path / "samples" / "00000002.png") as sheet:
            assert np.ptp(np.asarray(sheet)) > 0


@pytest.mark.parametrize(("path", "variant"), EVERY, ids=[f"{path.stem}:{variant}" for path, variant in EVERY])
def test_every_row_is_complete_and_its_smoke_form_is_tiny(path, variant):
    written = read_config(f"{path}:{variant}")
    schema = kind_of(written).schema
    kind = kind_of(written).system
    kind(override(written, NEEDED.get(variant, []), schema), FACTS)
    smoke = kind(load_config(f"{path}:{variant},smoke", [], schema), FACTS)
    assert smoke.train.steps == 2 and smoke.data.image_size <= 16
    if kind is not AutoencoderSystem:
        assert parameters(smoke) < 1_000_000
    else:
        assert sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(smoke.init_state).model)) < 1_000_000


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_form_has_the_published_number_of_parameters(name):
    file, _, variant = name.partition(":")
    written = read_config(f"configs/{file}.py:{variant}")
    kind = kind_of(written)
    system = kind.system(override(written, NEEDED.get(variant, []), kind.schema), FACTS)
    assert (parameters(system), system.latent_shape) == PUBLISHED[name]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_have_the_published_number_of_parameters(name):
    config = load_config(f"configs/ldm_autoencoder.py:{name}", [], AUTOENCODER_SCHEMA)
    system = AutoencoderSystem(config, DatasetFacts(1, (), "OpenImages"))
    state = jax.eval_shape(system.init_state)
    assert system.latent_shape == (32, 32, 4)
    published, batch_size = FIRST_STAGES[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(state.model.autoencoder)) == published
    assert config.train.batch_size == batch_size
    np.testing.assert_allclose(system.learning_rate(0), 4.5e-6 * batch_size)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("iuvit.py:celeba46", "config variant 'celeba46' is not known; did you mean 'celeba64'?"),
        ("ldm_unet.py:imagenet256,smoke", "'imagenet256' is not known; did you mean 'imagenet256-ldm"),
        ("dit.py:imagenet512,imagenet256", "names 'imagenet256' and 'imagenet512', which exclude each other"),
        ("dit.py:XL/2,S/2", "names 'S/2' and 'XL/2', which exclude each other"),
    ],
)
def test_a_mistaken_variant_is_one_line(file, message):
    with pytest.raises(UserError, match=r"\A[^\n]*\Z") as raised:
        read_config(f"configs/{file}")
    assert message in str(raised.value)
