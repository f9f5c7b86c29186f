"""Samples that a sampler did not finish are an error on every process, not images."""

import jax
import numpy as np
import pytest
from etils import epath

from diffusion_jax.config import complete, override
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.diffusion.samplers import RK45, Progress
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.archive import SampleArchive
from diffusion_jax.sampling.drawn import Diagnostics, UnfinishedSamples, check_drawn
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.grid import draw_grid, grid_stream
from diffusion_jax.sampling.requests import labelled_requests


def make_system(*overrides):
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1},
        "conditioner": {"name": "class"},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch_size": 4},
        "path": {"name": "vp"},
        "prediction": {"kind": "v"},
        "loss": {"name": "simple"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw"},
        "train": {"steps": 1, "batch_size": 8},
        "sampler": {"name": "rk45", "rtol": 0.1, "atol": 0.1},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 8, "grid": 4, "transform": "clip"},
    }
    words = [f"--config.{word}" for word in overrides]
    config = override(complete(config, DIFFUSION_SCHEMA).to_dict(), words, DIFFUSION_SCHEMA)
    return DiffusionSystem(config, DatasetFacts(10, tuple("0123456789"), "none"))


def drawn(system, mesh, num):
    stream = SampleStream(system, mesh, rows=4)
    requests = labelled_requests(np.zeros(num, np.int32))
    return np.concatenate(list(stream(system.init_model(), system.load_frozen(), requests, seed=5)))


@pytest.mark.parametrize("devices", [1, 4])
def test_samples_that_did_not_arrive_are_an_error(devices):
    """It counts the samples that were asked for, not those that fill up the last batch."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    assert drawn(make_system(), mesh, 3).shape == (3, 8, 8, 1)
    message = (
        r"^sampler 'rk45': 3 of 3 samples stopped at t = 0\.\d+[^\n]*, after sampler\.max_steps=1 attempts: raise it, "
        r"or sampler\.rtol and sampler\.atol, or take a sampler with a number of steps$"
    )
    with pytest.raises(UnfinishedSamples, match=message):
        drawn(make_system("sampler.max_steps=1"), mesh, 3)


def test_the_error_says_which_samples_stopped_why_and_where():
    progress = Progress(
        time=np.array([0.001, 0.25, 0.5, 0.001]),
        finished=np.array([True, False, False, True]),
        stuck=np.array([False, False, True, False]),
    )
    message = r"2 of 4 samples stopped at t = 0\.25 to 0\.5, .* since its steps became not finite or too small"
    with pytest.raises(UnfinishedSamples, match=message):
        check_drawn(Diagnostics(progress), RK45())
    check_drawn(Diagnostics(progress._replace(finished=np.ones(4, bool))), RK45())
    check_drawn(Diagnostics(), RK45())


def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(tmp_path, capsys):
    system, mesh = make_system("sampler.max_steps=1"), make_mesh(MeshConfig(), jax.devices()[:1])
    path = epath.Path(tmp_path / "grid.png")
    draw_grid(system, grid_stream(system, mesh), system.init_model(), system.load_frozen(), path)
    assert not path.exists()
    assert "grid.png: not drawn: sampler 'rk45': 4 of 4 samples stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "thing"),
    [
        (("sample.transform=clip",), "data that sample.transform has corrected"),
        (("sample.transform=none", "prediction.kind=x0"), "predicted data"),
    ],
)
def test_an_end_without_noise_is_refused_where_the_noise_is_derived_there(overrides, thing):
    """ε̂ = (x − αx̂_0)/σ is 0/0 at clean data, which rk45 evaluates."""
    linear = ("path.name=linear", "prediction.kind=velocity", "loss.name=flow_matching", "path.train_time_min=0.01")
    message = rf"needs the noise at its end, t = 0, .* {thing} do not give it: set sampler\.time_end=0\.005"
    with pytest.raises(UserError, match=message):
        make_system(*linear, *overrides)
    system = make_system(*linear, *overrides, "sampler.time_end=0.005", "sampler.denoise_last=True")
    assert drawn(system, make_mesh(MeshConfig(), jax.devices()[:1]), 2).shape == (2, 8, 8, 1)


def test_an_archive_that_is_left_by_an_error_leaves_no_file(tmp_path):
    with pytest.raises(UserError), SampleArchive(epath.Path(tmp_path / "s.npz"), (4, 2, 2, 3), None, {}) as archive:
        archive.add(np.zeros((2, 2, 2, 3), np.uint8))
        raise UserError("stopped")
    assert not list(tmp_path.iterdir())
    with SampleArchive(epath.Path(tmp_path / "s.npz"), (2, 2, 2, 3), None, {}) as archive:
        archive.add(np.full((2, 2, 2, 3), 7, np.uint8))
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (2, 2, 2, 3)
