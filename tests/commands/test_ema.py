"""An average of another width, after the run."""

import numpy as np
import pytest

from diffusion_jax.runs.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def run(command_line, tmp_path_factory):
    """A run of eight snapshots of two widths."""
    workdir = tmp_path_factory.mktemp("ema") / "run"
    snapshots = ("--config.train.ema_widths=(0.05, 0.10)", "--config.train.snapshot_every=1")
    command_line.run(
        *("train", "--config=configs/digits.py:smoke", "--workdir", workdir, "--config.train.steps=8", *snapshots),
        *("--config.train.save_every=8", "--config.train.sample_every=None"),
    )
    return workdir


def test_the_width_obtained_is_stated(command_line, run, tmp_path):
    out, _ = command_line.run("ema", "--workdir", run, "--sigma-rel=0.15", "--out", tmp_path / "wide")
    assert "an average of width 0.148 for 0.15, whose profile misses 3.3 %; sample" in out
    stored = Checkpoints(tmp_path / "wide", read_only=True).metadata(8)["posthoc_ema"]
    assert stored["sigma_rel"] == 0.15 and stored["snapshots"] == 16
    np.testing.assert_allclose(stored["misfit"], 0.033, atol=5e-4)


def test_a_width_beyond_the_snapshots_is_refused(command_line, run, tmp_path):
    _, error = command_line.run("ema", "--workdir", run, "--sigma-rel=0.01", "--out", tmp_path / "thin", status=2)
    assert "ema: the snapshots do not give an average of width 0.01 at step 8" in error
    assert "misses 53 % of the profile, of at most 20 %" in error
    assert not (tmp_path / "thin").exists()
