"""Runs that went wrong: what is not saved, what is called good, and the way on."""

import gc
import shutil
import sys
import time

import jax
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.training.start import doubts

pytestmark = pytest.mark.usefixtures("shared_compilations")
WORDS = {
    "train.save_every": 1,
    "train.keep": 9,
    "train.log_every": 1,
    "train.sample_every": None,
    "optimizer.warmup_steps": 0,
    "optimizer.schedule": "constant",
    "mesh.data": 1,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The runs are of one device, for their program compiles faster."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: devices)


def train(workdir, how=None, **words):
    overrides = {**WORDS, **{key.replace("__", "."): value for key, value in words.items()}}
    return dj.train("configs/digits.py:smoke", workdir, overrides, **(how or {}))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(
        UserError, match=r"^the weights after step 1 are not finite: stopped, and no good checkpoint was"
    ):
        train(tmp_path, train__steps=6, optimizer__lr=1e39)
    assert RunFolder(tmp_path).checkpoints(read_only=True).steps() == []


def test_a_run_goes_on_from_a_good_checkpoint_with_another_rate(tmp_path, capsys):
    """The weights of step 3 are finite and useless, which the loss of step 4 shows."""
    train(tmp_path, train__steps=2)
    with pytest.raises(UserError, match=r"optimizer.lr=0.001, not 1e\+38: set it back to resume, add --allow-changes"):
        train(tmp_path, train__steps=6, optimizer__lr=1e38)
    with pytest.raises(UserError, match=r"step 2 is the last good checkpoint; go on from it with --resume-step 2"):
        train(tmp_path, {"allow_changes": True}, train__steps=6, optimizer__lr=1e38)
    how = {"allow_changes": True, "resume_step": 2}
    run = train(tmp_path, how, train__steps=4, optimizer__lr=1e-4, optimizer__clip_norm=1.0)
    assert run.step == 4 and np.all(np.isfinite(run.log()["loss"])) and run.log()["step"].tolist() == [1, 2, 3, 4]
    changed = [(each["step"], each["key"], each["now"]) for each in run.metadata.more["changed"]]
    assert changed == [(2, "optimizer.clip_norm", 1.0), (2, "optimizer.lr", 1e-4)]
    with pytest.raises(UserError, match=r"holds a run with train.seed=0, not 1: set it back to resume, or use another"):
        train(tmp_path, how, train__steps=5, optimizer__lr=1e-4, optimizer__clip_norm=1.0, train__seed=1)


def test_a_run_that_does_nothing_is_doubted():
    sections = {"optimizer.decay_steps": 110, "train.steps": 150, "ema.max_decay": 0.9999}
    found = doubts(dj.load_config("configs/digits.py", sections))
    assert found[0] == (
        "optimizer.decay_steps=110 ends before train.steps=150: the learning rate is 0 for the last 40 steps"
    )
    assert found[1].startswith(
        "ema.max_decay=0.9999 over train.steps=150: 98.5 % of the averaged weights are the initial"
    )
    assert doubts(dj.load_config("configs/digits.py")) == []


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    refused = pytest.raises(UserError, match=r"another `train` is at work there \(process \d+ on ")
    with RunFolder(tmp_path).locked(), refused:
        train(tmp_path, train__steps=2)
    with RunFolder(tmp_path).locked():
        pass


@pytest.mark.parametrize("damage", ["metadata missing", "metadata empty", "arrays cut"])
def test_a_damaged_checkpoint_is_named_with_the_older_one_and_nothing_else_is_said(tmp_path, damage, monkeypatch):
    train(tmp_path, train__steps=2)
    newest = tmp_path / "checkpoints" / "2"
    if damage == "metadata missing":
        shutil.rmtree(newest / "metadata")
    elif damage == "metadata empty":
        (newest / "metadata" / "metadata").write_bytes(b"")
    else:
        for path in newest.rglob("d/*"):
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*: take the older --step or --resume-step 1$"):
        heard = []
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        dj.open_run(tmp_path).sample(2, steps=2)
    gc.collect()
    time.sleep(0.3)
    assert heard == []
