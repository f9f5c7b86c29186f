"""Digits, the classifier that knows them, and the feature sets of the reference metrics."""

import json
import pathlib
import zlib

import numpy as np
import pytest

from diffusion_jax.data.digits import Digits
from diffusion_jax.evaluation.digit_classifier import DigitClassifier

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FEATURE_SEED = 11


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def classifier(cache):
    return DigitClassifier.open(folder=cache)


@pytest.fixture(scope="session")
def digits():
    """The images [N, 8, 8, 3] and labels [N] of a split."""

    def read(split):
        source = Digits(split, 8, channels=3)
        records = [source[i] for i in range(len(source))]
        return np.stack([record["image"] for record in records]), np.stack([record["label"] for record in records])

    return read


@pytest.fixture(scope="session")
def golden_metrics():
    """The values of reference implementations, and the moments of the sets they were computed from."""
    with np.load(GOLDEN / "metrics.npz") as archive:
        return json.loads((GOLDEN / "metrics.json").read_text()), {key: archive[key] for key in archive.files}


@pytest.fixture(scope="session")
def golden_features(golden_metrics):
    """Both feature sets, [n, D] and [m, D], of a named pair, by the rule under which the references were made."""

    def make(name):
        config = golden_metrics[0][name]["config"]
        centres = _uniform(f"{name}/centre", config["k"] * config["d"]).reshape(config["k"], config["d"])
        sets = []
        for side, count, law in (("x", config["n"], config["gx"]), ("y", config["m"], config["gy"])):
            which = np.floor(config["k"] * _uniform(f"{name}/{side}/which", count)).astype(int)
            noise = _uniform(f"{name}/{side}/noise", count * config["d"]).reshape(count, config["d"])
            noise = noise + 0.5 * np.roll(noise, 1, axis=1)
            spread, size, shift = law
            sets.append((spread * centres[which] + size * noise) + shift)
        return sets

    return make


def _uniform(name, count):
    return np.random.Generator(np.random.PCG64([FEATURE_SEED, zlib.crc32(name.encode())])).random(count)
