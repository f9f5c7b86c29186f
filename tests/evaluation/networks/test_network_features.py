"""Running a network over images: the same statistics on any devices, in any batches, in any number of processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation import FeatureStatistics
from diffusion_jax.evaluation.networks import network_features
from diffusion_jax.evaluation.networks.network_features import NetworkFeatures


def exact_network():
    """Projections of pixels by small integers, which float32 adds without rounding in any order."""
    return np.random.default_rng(0).integers(-3, 4, (48, 10)).astype(np.float32)


def features(devices, images_per_device, one_by_one=False, kind=NetworkFeatures):
    return kind(
        exact_network(),
        {"pixels": 10},
        prepare=lambda images: images.astype(jnp.float32).reshape(len(images), -1),
        apply=lambda network, x: {"pixels": x @ network},
        one_by_one=one_by_one,
        devices=jax.devices()[:devices],
        images_per_device=images_per_device,
    )


@pytest.mark.parametrize(
    ("devices", "images_per_device", "batch", "one_by_one"),
    [(8, 8, 64, False), (8, 1, 7, True), (1, 7, 7, False), (1, 16, 64, True), (2, 5, 101, True)],
)
def test_statistics_depend_on_neither_devices_nor_batches(monkeypatch, devices, images_per_device, batch, one_by_one):
    monkeypatch.setattr(network_features, "usable_cores", lambda: 6)
    images = np.random.default_rng(1).integers(0, 256, (101, 4, 4, 3), np.uint8)
    rows = images.reshape(101, -1).astype(np.float64) @ exact_network()
    statistics, run = FeatureStatistics(10), features(devices, images_per_device, one_by_one)
    for start in range(0, 101, batch):
        statistics.update(run.measure(images[start : start + batch])["pixels"])
    mean, covariance = statistics.finalise()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=0, atol=1e-10 * np.abs(covariance).max())


def test_as_many_batches_run_at_the_same_time_as_keep_the_cores_busy(monkeypatch):
    monkeypatch.setattr(network_features, "usable_cores", lambda: 6)
    together = threading.Barrier(3)

    class Meeting(NetworkFeatures):
        def on_host(self, images):
            together.wait(timeout=20)
            return images

    run = features(2, 8, one_by_one=True, kind=Meeting)
    assert (run.threads, run.batch_size) == (3, 2 * 3)
    images = np.random.default_rng(2).integers(0, 256, (18, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(run.measure(images)["pixels"], images.reshape(18, -1) @ exact_network())


def test_each_device_runs_its_own_images():
    run = features(8, 4, one_by_one=True)
    compiled = run._run.lower(run._network, jax.device_put(np.zeros((32, 48), np.float32), run._split)).compile()
    assert "all-gather" not in compiled.as_text() and "while" in compiled.as_text()


PROGRAM = """
import sys
from diffusion_jax.parallel import processes
port, count, number = sys.argv[1:4]
if int(count) > 1:
    processes.start(f"localhost:{port}", int(count), int(number))
import json, dataclasses
import jax.numpy as jnp, numpy as np
from diffusion_jax.evaluation.networks.combined_features import CombinedFeatures
from diffusion_jax.evaluation.evaluator import Evaluator
from diffusion_jax.evaluation.networks.network_features import NetworkFeatures
from diffusion_jax.evaluation.protocols import PROTOCOLS
from diffusion_jax.evaluation.references import Reference
rng = np.random.default_rng(0)
widths = {"2048": 12, "spatial": 9, "logits_unbiased": 7}
network = {tap: rng.integers(-3, 4, (48, width)).astype(np.float32) for tap, width in widths.items()}
run = NetworkFeatures(network, widths, one_by_one=True, images_per_device=4,
    prepare=lambda images: images.astype(jnp.float32).reshape(len(images), -1),
    apply=lambda network, x: {tap: x @ kernel / 512 for tap, kernel in network.items()})
run.name, run.weights_sha256, run.resize, run.scale, run.precision = "exact", None, "none", "none", "float32"
def images(seed):
    return np.random.default_rng(seed).integers(0, 256, (150, 4, 4, 3), np.uint8)
real = {tap: (images(1).reshape(150, -1) @ kernel / 512.0) for tap, kernel in network.items()}
moments = {tap: (rows.mean(0), np.cov(rows, rowvar=False)) for tap, rows in real.items() if tap[0] != "l"}
protocol = dataclasses.replace(PROTOCOLS["adm"], kid_subsets=5, kid_subset_size=50)
metrics = ("fid", "sfid", "inception_score", "kid", "precision", "recall")
evaluator = Evaluator(protocol, CombinedFeatures([run]), Reference("real", moments, real["2048"], {}), metrics, True)
result = evaluator.measure(images(2)[start : start + 37] for start in range(0, 150, 37))
print("RESULT" + json.dumps(result))
"""


def results(count, devices):
    """What each of some processes prints."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(count), str(number)],
            cwd=pathlib.Path(__file__).parents[3],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    found = []
    for process in started:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found += [json.loads(line.removeprefix("RESULT")) for line in out.splitlines() if line.startswith("RESULT")]
    return found


def test_two_processes_of_four_devices_equal_one_of_eight():
    (alone,) = results(1, 8)
    first, second = results(2, 4)
    assert first == second and alone["count"] == first["count"] == 150
    assert alone["images_sha256"] == first["images_sha256"]
    assert len(alone["metrics"]) == 8
    for name, value in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-10), name
