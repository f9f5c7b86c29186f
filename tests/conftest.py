"""Test configuration: eight fake CPU devices, strict dtype promotion."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

# Must be set before JAX starts its backend; XLA reads it once.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """A command that a test runs in this process leaves the user's cache, and the other tests, alone."""
    monkeypatch.setattr("diffusion_jax.__main__.enable_compilation_cache", lambda: None)


@pytest.fixture(scope="session")
def golden():
    """Loads `tests/golden/<name>.npz` as a dict of arrays, with `config` parsed from JSON."""
    import json

    folder = pathlib.Path(__file__).parent / "golden"

    def load(name: str) -> dict:
        with np.load(folder / f"{name}.npz") as archive:
            data = {key: archive[key] for key in archive.files}
        data["config"] = json.loads(str(data["config"]))
        return data

    return load


@pytest.fixture(scope="module")
def shared_compilations(tmp_path_factory):
    """Runs of one module that are the same program compile it once."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}

    def configure(values):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)

    configure(options)
    yield
    configure(before)


@pytest.fixture(scope="session")
def bucket():
    """`gs://bucket`, which a process on this machine keeps in memory, for this process and those that it starts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = pathlib.Path(__file__).with_name("bucket_server.py")
    server = subprocess.Popen(
        [sys.executable, program, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    environment = {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
        # Otherwise gcsfs asks Google what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield "gs://bucket"
    finally:
        server.kill()
        server.wait()
