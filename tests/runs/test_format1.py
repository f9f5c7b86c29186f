"""Runs and latents written by version 0.1.0, whose checkpoints carry no number of their format, stay readable.

`golden/run_format1.tar.xz` holds the folders of a digits DiT, of a classifier of noisy digits and of a first stage
(the last two without their optimizers), latents, and in `expected` what the commands made of them on one device.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from diffusion_jax.__main__ import main

pytestmark = pytest.mark.usefixtures("shared_compilations")
ARCHIVE = pathlib.Path(__file__).parents[1] / "golden" / "run_format1.tar.xz"
# The DiT's run was made by these words and `--config.train.steps=2`.
TRAIN = ["train", "--config=configs/digits.py:smoke", "--config.model.width=16", "--config.model.depth=1"]
TRAIN += ["--config.optimizer.warmup_steps=0", "--config.optimizer.lr=0.05", "--config.ema.max_decay=0.5"]
TRAIN += ["--config.train.save_every=2", "--config.train.sample_every=None", "--config.train.log_every=1"]


@pytest.fixture
def old(tmp_path):
    """The unpacked archive, a copy for each test."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_training(ours, want):
    assert [line["step"] for line in ours] == [line["step"] for line in want]
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[key] for line in ours], [line[key] for line in want], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["samples", "guided"])
def test_its_samples_are_drawn_again(old, tmp_path, name):
    words = ["--num=8", "--batch-size=8", "--labels=0-7", "--steps=4"]
    if name == "guided":
        words += [f"--classifier-workdir={old / 'digits_classifier'}", "--classifier-scale=20"]
    main(["sample", f"--workdir={old / 'digits'}", f"--out={tmp_path / 'out'}", *words])
    with np.load(tmp_path / "out" / "samples.npz") as ours, np.load(old / "expected" / f"{name}.npz") as want:
        assert np.abs(ours["arr_0"].astype(int) - want["arr_0"]).max() <= 1
        assert np.array_equal(ours["arr_1"], want["arr_1"])


def test_its_training_goes_on(old):
    main([*TRAIN, "--config.train.steps=4", f"--workdir={old / 'digits'}"])
    assert_same_training(log(old / "digits" / "metrics.jsonl"), log(old / "expected" / "resumed.jsonl"))


def test_its_first_stage_encodes(old, tmp_path):
    words = [f"--weights={old / 'autoencoder'}", "--data=shapes:images=16", "--image-size=16"]
    main(["encode", "--autoencoder=kl-f4", f"--out={tmp_path / 'out'}", *words])
    ours, want = (json.loads((path / "metadata.json").read_text()) for path in (tmp_path / "out", old / "latents"))
    assert ours["encoder"] == want["encoder"]
    for key, value in want["statistics"].items():
        np.testing.assert_allclose(ours["statistics"][key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("data", ["shapes:images=16", "cache:{old}/latents"])
def test_its_first_stage_and_its_latents_train_a_diffusion_model(old, tmp_path, data):
    words = ["--config.autoencoder.name=kl", f"--config.autoencoder.weights={old / 'autoencoder'}"]
    words += ["--config.data.image_size=16", "--config.data.channels=3", f"--config.data.name={data.format(old=old)}"]
    main([*TRAIN, *words, "--config.train.steps=2", f"--workdir={tmp_path / 'run'}"])
    assert_same_training(log(tmp_path / "run" / "metrics.jsonl"), log(old / "expected" / "latent.jsonl"))
