"""Every kind of run trains, samples and scores as it did when `golden/recorded_losses.json` was written.

The file holds the commands' arguments, 20 losses and gradient norms of each run, averages of its samples, and scores.
Rounding moved the losses by up to 5e-7 and the norms by up to 2e-6 (relative) between one thread and two, one device
and eight, and compilation with and without optimisation. Other processors round in other ways again.
"""

import json
import multiprocessing
import os
import pathlib
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from diffusion_jax.__main__ import main

RECORDED = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "recorded_losses.json").read_text())
SLOW = ("autoencoder", "latent_dit", "unet", "ascend")


def names(section):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RECORDED[section]]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Runs commands in a process of one device, as recorded: programs of eight take twice as long to compile."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield lambda *words: process.submit(main, words).result()


class Folders(dict):
    """The folders of the runs and of the latents, by name; each is made when it is first asked for."""

    def __init__(self, root, command):
        super().__init__()
        self.root, self.command = root, command

    def __missing__(self, name):
        if name == "latents":
            words = ["encode", f"--out={self.root / name}", *self.words(RECORDED["latents"])]
        else:
            run = RECORDED["runs"][name]
            words = ["train", f"--config={run['config']}", f"--workdir={self.root / name}"]
            words += [*RECORDED["every_run"], *self.words(run["overrides"])]
        self.command(*words)
        self[name] = self.root / name
        return self[name]

    def words(self, words):
        """Arguments with folders for the names in braces."""
        return [word.format_map(self) for word in words]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, one_device):
    return Folders(tmp_path_factory.mktemp("recorded"), one_device)


@pytest.mark.parametrize("name", names("runs"))
def test_a_run_has_the_recorded_losses(name, folders):
    want = RECORDED["runs"][name]
    log = [json.loads(line) for line in (folders[name] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, len(want["loss"]) + 1))
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[key] for line in log], want[key], rtol=1e-5, err_msg=key)
    for key, value in want.get("held_out", {}).items():
        np.testing.assert_allclose(log[-1][key], value, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", names("samples"))
def test_a_run_has_the_recorded_samples(name, folders, one_device, tmp_path):
    want = RECORDED["samples"][name]
    words = ["sample", f"--workdir={folders[want['run']]}", f"--out={tmp_path}", *folders.words(want["arguments"])]
    one_device(*words)
    with np.load(tmp_path / "samples.npz") as archive:
        images = archive["arr_0"].astype(float)
    blocks = images.reshape(len(images), 4, images.shape[1] // 4, 4, images.shape[2] // 4, 3).mean((2, 4, 5))
    # One level: pixels next to a rounding edge. Twenty steps of training have made no two of these images alike.
    np.testing.assert_allclose(blocks.reshape(len(images), 16), want["blocks"], rtol=0, atol=1)
    np.testing.assert_allclose(images.mean((1, 2)), want["channels"], rtol=0, atol=1)


def test_an_evaluation_has_the_recorded_scores(folders, one_device, tmp_path):
    want = RECORDED["evaluation"]
    one_device("evaluate", f"--workdir={folders[want['run']]}", f"--out={tmp_path / 'scores.json'}", *want["arguments"])
    ours = json.loads((tmp_path / "scores.json").read_text())
    for scores, recorded in ((ours, want["metrics"]), (ours["held_out"], want["held_out"])):
        for key, value in recorded.items():
            np.testing.assert_allclose(scores[key], value, rtol=1e-4, err_msg=key)
