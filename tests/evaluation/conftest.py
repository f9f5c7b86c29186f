"""Digits, the classifier that knows them, and the feature sets of the reference metrics."""

import functools
import hashlib
import json
import pathlib
import zlib

import jax
import numpy as np
import pytest

from diffusion_jax.data.digits import Digits
from diffusion_jax.evaluation.digits.classifier import DigitClassifier
from diffusion_jax.evaluation.networks.inception import InceptionV3, inception_entries
from diffusion_jax.interop.mapping import parameter_paths

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FEATURE_SEED = 11
WEIGHT_SEED, IMAGE_SEED = 20151205, 7


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


@pytest.fixture(scope="session")
def golden_logits(golden_metrics):
    """The logits [n, d] of a named set, by the same rule."""

    def make(name):
        c = golden_metrics[0][name]
        centres = _uniform(f"{name}/centre", c["clusters"] * c["d"]).reshape(c["clusters"], c["d"])
        which = np.floor(c["clusters"] * _uniform(f"{name}/z/which", c["n"])).astype(int)
        noise = _uniform(f"{name}/z/noise", c["n"] * c["d"]).reshape(c["n"], c["d"])
        noise = noise + 0.5 * np.roll(noise, 1, axis=1)
        return (c["spread"] * centres[which] + c["noise"] * noise) - 0.5 * c["spread"]

    return make


def _uniform(name, count, seed=FEATURE_SEED):
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])).random(count)


@pytest.fixture(scope="session")
def golden_inception():
    """Features, resized images and the description of reference runs of the Inception network."""
    with np.load(GOLDEN / "inception_random.npz") as archive:
        data = {key: archive[key] for key in archive.files}
    return data | {"meta": json.loads(bytes(data["meta_json"]))}


@pytest.fixture(scope="session")
def inception_state_dict():
    """The 472 float tensors of the reference runs by their published names."""
    network = jax.eval_shape(InceptionV3)
    leaves = parameter_paths(network)
    tensors = {}
    for entry in inception_entries(network):
        shape = entry.transform.inverse(np.broadcast_to(np.float32(0), leaves[entry.ours].shape)).shape
        tensors[entry.parts[0]] = _tensor(entry.parts[0], shape)
    return tensors


@pytest.fixture(scope="session")
def inception(inception_state_dict):
    return InceptionV3.from_state_dict(inception_state_dict)


def _tensor(name, shape):
    u = _uniform(name, int(np.prod(shape)), WEIGHT_SEED).reshape(shape)
    if name.endswith(("conv.weight", "fc.weight")):
        value = np.sqrt(6 / np.prod(shape[1:])) * (2 * u - 1)
    elif name.endswith("fc.bias"):
        value = u - 0.5
    elif name.endswith("bn.weight"):
        value = 0.75 + 0.5 * u
    elif name.endswith("running_var"):
        value = 0.8 + 0.8 * u
    else:
        value = -0.25 + 0.5 * u
    return value.astype(np.float32)


@pytest.fixture(scope="session")
def inception_images(golden_inception):
    """The uint8 images [n, h, w, 3] of a named group."""
    return functools.cache(functools.partial(_images, golden_inception["meta"]))


def _images(meta, group):
    count, height, width = next(rest for name, *rest in meta["groups"] if name == group)
    batch = np.stack([_image(group, i, height, width) for i in range(count)])
    if count == 8:
        y, x = np.mgrid[:height, :width]
        red, green = 255 * x // (width - 1), 255 * y // (height - 1)
        batch[0], batch[1] = 0, 255
        batch[2] = _noise(f"img_{group}/2/noise", height, width)
        batch[3] = (255 * ((y + x) % 2))[..., None]
        batch[4] = np.stack([red, green, 255 - red], -1)
    assert hashlib.sha256(batch.tobytes()).hexdigest() == meta[f"sha256_img_{group}"]
    return batch


def _noise(name, height, width):
    return np.floor(256 * _uniform(name, height * width * 3, IMAGE_SEED)).reshape(height, width, 3).astype(np.uint8)


def _image(group, i, height, width):
    noise = _noise(f"img_{group}/{i}/noise", height, width).astype(int)
    coarse = _noise(f"img_{group}/{i}/coarse", -(-height // 8), -(-width // 8)).astype(int)
    block = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return ((3 * block + noise) // 4).astype(np.uint8)
