"""A run whose every path is in a bucket, from the command line: trained, killed, resumed, sampled, scored, encoded."""

import json
import signal
import time

import numpy as np
import pytest

from diffusion_jax import __main__
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_sets import SampleFile
from diffusion_jax.files import list_files, user_path

pytestmark = pytest.mark.usefixtures("shared_compilations")

STEPS = 4
TRAIN = ("train", "--config=configs/digits.py:smoke", "--config.train.save_every=2", "--config.train.sample_every=None")
TINY = {"ch": 8, "ch_mult": "(1,)", "norm_groups": 4, "num_res_blocks": 1, "mid_attention": False, "in_channels": 1}
AUTOENCODER = [f"--config.autoencoder.{key}={value}" for key, value in TINY.items()]


@pytest.fixture(autouse=True)
def caches(command_line, monkeypatch):
    """What commands keep, also those that run in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(command_line.cache))


@pytest.fixture(scope="module")
def workdir(command_line, bucket):
    """A run that was killed after its first checkpoint and then finished."""
    workdir = user_path(f"{bucket}/runs/digits")
    endless = command_line.start(*TRAIN, "--config.train.steps=100000", f"--workdir={workdir}")
    deadline = time.monotonic() + 200
    while not (workdir / "checkpoints/2/commit_success.txt").exists():
        assert endless.poll() is None, endless.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    endless.send_signal(signal.SIGKILL)
    endless.communicate()
    saved = max(int(name.split("/")[1]) for name in list_files(workdir) if name.endswith("/commit_success.txt"))
    steps = saved + STEPS
    _, error = command_line.run(*TRAIN, f"--config.train.steps={steps}", f"--workdir={workdir}")
    assert "resuming at step" in error
    return workdir


def test_a_killed_run_resumes_and_leaves_what_a_run_on_a_disk_leaves(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    names = list_files(workdir)
    assert {"config.json", "parameters.txt", "metrics.jsonl"} <= names.keys()
    assert not any("partial" in name for name in names)
    assert f"checkpoints/{len(lines)}/commit_success.txt" in names


def test_samples_are_drawn_and_scored(workdir, bucket, capsys):
    out = f"{bucket}/samples"
    draw = [f"--workdir={workdir}", f"--out={out}", "--num=6", "--steps=2"]
    __main__.run("sample", draw)
    samples = SampleFile(user_path(f"{out}/samples.npz"))
    assert samples.count == 6 and (user_path(out) / "samples.png").exists()
    with pytest.raises(UserError, match=r"--out gs://bucket/samples: samples.npz is already there"):
        __main__.run("sample", draw)
    result = f"{bucket}/results/digits.json"
    scores = [f"--samples={out}/samples.npz", "--reference=digits", f"--out={result}"]
    __main__.run("evaluate", scores)
    assert json.loads(user_path(result).read_text())["samples"]["count"] == 6
    __main__.run("evaluate", [*scores, "--overwrite", f"--compare={result}"])
    assert "frechet_distance" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--out gs://bucket/results/digits.json is already there"):
        __main__.run("evaluate", scores)


def test_known_pixels_are_read(workdir, bucket, tmp_path):
    from diffusion_jax.files import open_atomically
    from diffusion_jax.sampling.known_pixels import read_known_pixels

    with open_atomically(user_path(f"{bucket}/known.npz")) as file:
        np.savez(file, image=np.full((1, 8, 8, 3), 7, np.uint8), mask=np.ones((1, 8, 8)))
    assert (read_known_pixels(f"{bucket}/known.npz", 3, (8, 8, 3)).image == 7).all()
    with pytest.raises(UserError, match=r"--known gs://bucket/absent.npz: needs the arrays image and mask"):
        read_known_pixels(f"{bucket}/absent.npz", 3, (8, 8, 3))


def test_latents_are_encoded_and_trained_from(bucket, capsys):
    out = f"{bucket}/latents"
    encode = ["--autoencoder=kl-f4", "--weights=random", "--data=digits", "--split=test", "--image-size=8"]
    encode += ["--config.data.channels=1", "--batch-size=20", "--shard-size=100", *AUTOENCODER, f"--out={out}"]
    __main__.run("encode", encode)
    assert "359 images as latents 8×8×3" in capsys.readouterr().out
    assert sorted(list_files(out).values())[0] > 0 and len(list_files(out)) == 9
    digits = open_source(DataConfig("digits", 8, "test", channels=1))
    cache = open_source(DataConfig(f"cache:{out}", 8, "test", channels=1))
    assert [int(cache[i]["label"]) for i in range(len(cache))] == [int(each["label"]) for each in digits]

    user_path(f"{out}/latents-00001-of-00004.array_record").unlink()
    with pytest.raises(UserError, match=r"gs://bucket/latents/latents-00001-of-00004.array_record is missing"):
        open_source(DataConfig(f"cache:{out}", 8, "test", channels=1))
    __main__.run("encode", encode)
    assert "shard 2 of 4: 100 images" in capsys.readouterr().err

    train = ["--config=configs/digits.py:smoke", "--config.autoencoder.name=kl", "--config.autoencoder.preset=kl-f4"]
    train += ["--config.autoencoder.weights=random", "--config.autoencoder.scale=1", "--config.train.sample_every=None"]
    train += [f"--config.data.name=cache:{out}", "--config.data.split=test", *AUTOENCODER]
    __main__.run("train", [*train, f"--workdir={bucket}/runs/latent"])
    assert (user_path(bucket) / "runs/latent/metrics.jsonl").read_text().count("\n") == 2
