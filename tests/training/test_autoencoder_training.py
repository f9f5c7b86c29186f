"""First stages trained by the loop: what a run leaves, that it resumes, and diffusion in the latents of its result."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.autoencoding.latent_statistics import LatentStatistics
from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA
from diffusion_jax.config import load_config, override, read_config
from diffusion_jax.data import open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.open_run import restore
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.autoencoder_stage import AutoencoderStage
from diffusion_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("shared_compilations")
CONFIG = "configs/shapes64_autoencoder.py:smoke"
WORDS = ["train.steps=4", "train.sample_every=None", "train.eval_every=None", "optimizer.warmup_steps=0"]
WORDS += ["discriminator.name=patchgan", "discriminator.num_layers=1", "discriminator.ndf=4", "loss.disc_start=2"]
WORDS += ["autoencoder.ch=4", "autoencoder.norm_groups=2", "data.num_threads=1"]
IMAGES = {"data.name": "shapes:images=64", "data.image_size": 16, "data.channels": 3}


def first_stage_config(*more):
    return load_config(CONFIG, [f"--config.{word}" for word in (*WORDS, *more)], AUTOENCODER_SCHEMA)


def diffusion_config(weights, *more):
    written = read_config("configs/digits.py:smoke")
    written["autoencoder"] = {"name": "kl", "weights": str(weights)}
    words = (
        [f"{key}={value}" for key, value in IMAGES.items()]
        + ["model.patch_size=2", "train.sample_every=None"]
        + list(more)
    )
    return override(written, [f"--config.{word}" for word in words], DIFFUSION_SCHEMA)


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_compilations):
    """Four steps, the discriminator setting in at the third."""
    workdir = tmp_path_factory.mktemp("first_stage")
    train(first_stage_config(), workdir)
    return workdir


def test_the_log_tells_of_both_networks(run):
    lines = log(run)
    assert [line["disc_switch"] for line in lines] == [0, 0, 1, 1]
    assert all(line["disc_grad_norm"] == 0 for line in lines[:2])
    assert all(line["disc_grad_norm"] > 0 and line["adaptive_weight"] > 0 for line in lines[2:])
    assert lines[-1].keys() >= {"loss", "rec_loss", "kl", "g_loss", "disc_loss", "psnr", "learning_rate", "mfu"}


def test_stopped_and_resumed_equals_unbroken(run, tmp_path):
    config = first_stage_config("train.steps=2")
    train(config, tmp_path)
    train(first_stage_config(), tmp_path)
    for ours, want in zip(log(tmp_path), log(run), strict=True):
        for name in ("loss", "disc_loss", "psnr", "kl"):
            np.testing.assert_allclose(ours[name], want[name], rtol=1e-5)


def test_a_run_is_not_continued_as_another(run):
    with pytest.raises(UserError, match=r"holds a run with discriminator\.ndf=4, not 8: set it back to resume"):
        train(first_stage_config("discriminator.ndf=8"), run)
    with pytest.raises(UserError, match=r"holds a run that trains a first stage, not a diffusion model: use another"):
        train(load_config("configs/digits.py:smoke", [], DIFFUSION_SCHEMA), run)
    with pytest.raises(UserError, match=r"this run trained a first stage, not a diffusion model; train one with auto"):
        restore(RunFolder(run))


def test_diffusion_takes_weights_architecture_and_scale_from_the_run(run, tmp_path):
    train(diffusion_config(run), tmp_path)
    restored = restore(RunFolder(tmp_path))
    system, first_stage = restored.system, restored.frozen.first_stage
    assert system.latent_shape == (8, 8, 4)
    restored = restore(RunFolder(tmp_path), overrides=["--config.mesh.fsdp=2"])
    mesh, model = restored.mesh, restored.model
    assert dict(mesh.shape) == {**dict(mesh.shape), "data": 4, "fsdp": 2}
    kernel = model.blocks.mlp.fc1.kernel[...]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    checkpoints = Checkpoints(run, read_only=True)
    statistics = LatentStatistics.from_json(checkpoints.metadata(4)["latents"])
    assert statistics.count == 8 * 8 * 8
    np.testing.assert_allclose(first_stage.scale, statistics.scale, rtol=1e-6)

    stage = AutoencoderStage(first_stage_config(), DatasetFacts(8, (), "shapes"))
    ema = checkpoints.read(4, {"ema": stage.abstract_state().ema})["ema"]
    jax.tree.map(np.testing.assert_array_equal, first_stage.autoencoder, ema.autoencoder)

    source = open_source(system.data)
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 127.5 - 1
    noise = jax.random.normal(jax.random.key(0), (len(images), *system.latent_shape))
    np.testing.assert_allclose(np.std(jax.jit(first_stage.encode)(images, noise)), 1, rtol=0.1)


def test_diffusion_takes_the_statistics_of_the_channels_from_the_run(run):
    config = diffusion_config(run, "autoencoder.normalize=channel")
    first_stage = DiffusionSystem(config, DatasetFacts(8, (), "shapes")).autoencoder.abstract()
    statistics = LatentStatistics.from_json(Checkpoints(run, read_only=True).metadata(4)["latents"])
    np.testing.assert_allclose(first_stage.shift, statistics.mean, rtol=1e-6)
    np.testing.assert_allclose(first_stage.scale, 1 / statistics.std, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("autoencoder.ch=8",), r"that run has ch=4, not 8; leave the key out"),
        (("autoencoder.name=vq",), r"that run trained a 'kl' autoencoder: set autoencoder\.name to it"),
    ],
)
def test_a_section_that_contradicts_the_run_is_refused(run, more, message):
    with pytest.raises(UserError, match=message):
        DiffusionSystem(diffusion_config(run, *more), DatasetFacts(8, (), "shapes"))


def test_a_diffusion_run_is_no_first_stage(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"ema": np.zeros(1)}, {"config": {}})
    checkpoints.close()
    with pytest.raises(UserError, match="that run trained no autoencoder"):
        DiffusionSystem(diffusion_config(tmp_path), DatasetFacts(8, (), "shapes"))
