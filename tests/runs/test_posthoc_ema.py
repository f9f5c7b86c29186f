"""Averages of the weights: profiles in the step, and post-hoc reconstruction from snapshots on disk."""

import jax
import numpy as np
import pytest

from diffusion_jax.config import load_config
from diffusion_jax.diffusion.importance_sampling import LossHistory
from diffusion_jax.errors import UserError
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.open_run import restore
from diffusion_jax.runs.posthoc_ema import reconstruct
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twelve steps with two tracked averages, a power-function EMA of a third width, and importance sampling."""
    workdir = tmp_path_factory.mktemp("run")
    overrides = [
        "--config.train.steps=12",
        "--config.train.sample_every=None",
        "--config.train.ema_widths=(0.05, 0.1)",
        "--config.train.snapshot_every=1",
        "--config.ema.name=power",
        "--config.ema.sigma_rel=0.15",
        "--config.timesteps.name=loss_second_moment",
        "--config.optimizer.lr=1e-2",
        "--config.optimizer.warmup_steps=0",
    ]
    train(load_config("configs/digits.py:smoke", overrides, DIFFUSION_SCHEMA), workdir)
    return workdir


def weights(workdir, params="ema"):
    model = restore(RunFolder(workdir), "latest", [f"--config.sample.params={params}"]).model
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])


def test_a_width_that_was_not_stored_is_reconstructed(run, tmp_path):
    reconstruct(run, tmp_path / "out", 0.15, "latest")
    ours, tracked, raw = weights(tmp_path / "out"), weights(run), weights(run, "raw")
    # The run itself tracked this width, so the reconstruction can be compared with the truth; the raw weights show
    # how large a difference could be.
    assert np.linalg.norm(ours - tracked) < 0.02 * np.linalg.norm(raw - tracked)


def test_a_stored_width_comes_back(run, tmp_path):
    reconstruct(run, tmp_path / "out", 0.1, "7")
    assert Checkpoints(tmp_path / "out", read_only=True).steps() == [7]
    restored = restore(RunFolder(tmp_path / "out"))
    system, model = restored.system, restored.model
    stored = Checkpoints(run, folder="snapshots", read_only=True).read(7, {"0.1": model})["0.1"]
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert system.train.ema_widths == (0.05, 0.1)


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(UserError, match=r"sigma_rel must lie in \(0, 0.28\)"):
        reconstruct(run, tmp_path / "a", 0.5, "latest")
    with pytest.raises(UserError, match="no snapshots; train with"):
        reconstruct(tmp_path, tmp_path / "a", 0.1, "latest")
    for step in ("99", "²"):
        with pytest.raises(UserError, match=rf"step {step}: .* has no such checkpoint"):
            reconstruct(run, tmp_path / "a", 0.1, step)
    with pytest.raises(UserError, match="checkpoints are already there"):
        reconstruct(run, run, 0.1, "latest")
    with pytest.raises(UserError, match="set both or neither"):
        train(
            load_config("configs/digits.py:smoke", ["--config.train.snapshot_every=1"], DIFFUSION_SCHEMA),
            tmp_path / "b",
        )


def test_importance_sampling_resumes_with_its_memory(run, tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    losses = jax.ShapeDtypeStruct((1000, 10), "float32", sharding=place)
    counts = jax.ShapeDtypeStruct((1000,), "int32", sharding=place)
    abstract = {"timesteps": LossHistory(losses, counts)}
    history = Checkpoints(run, read_only=True).read(12, abstract)["timesteps"]
    assert int(history.counts.sum()) == 12 * 8
    assert (np.asarray(history.losses) > 0).sum() == 12 * 8


def test_timestep_sampler_needs_a_discrete_path(tmp_path):
    overrides = ["--config.path.name=vp", "--config.timesteps.name=loss_second_moment"]
    with pytest.raises(UserError, match="timesteps 'loss_second_moment' counts losses by timestep; path 'vp' has none"):
        train(load_config("configs/digits.py:smoke", overrides, DIFFUSION_SCHEMA), tmp_path)
