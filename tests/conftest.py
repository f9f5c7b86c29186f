"""Test configuration: eight fake CPU devices, strict dtype promotion."""

import os

# Must be set before JAX starts its backend; XLA reads it once.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """A command that a test runs in this process leaves the user's cache, and the other tests, alone."""
    monkeypatch.setattr("diffusion_jax.__main__.enable_compilation_cache", lambda: None)


@pytest.fixture(scope="session")
def golden():
    """Loads `tests/golden/<name>.npz` as a dict of arrays, with `config` parsed from JSON."""
    import json
    import pathlib

    folder = pathlib.Path(__file__).parent / "golden"

    def load(name: str) -> dict:
        with np.load(folder / f"{name}.npz") as archive:
            data = {key: archive[key] for key in archive.files}
        data["config"] = json.loads(str(data["config"]))
        return data

    return load
