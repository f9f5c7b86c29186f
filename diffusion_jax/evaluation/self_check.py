"""Known pairs with known values: what a person runs before trusting a number of this machine."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.metrics.frechet import frechet_distance
from diffusion_jax.evaluation.metrics.inception_score import inception_score
from diffusion_jax.evaluation.metrics.kid import kernel_distance
from diffusion_jax.evaluation.metrics.precision_recall import precision_recall
from diffusion_jax.evaluation.networks.inception import InceptionV3, inception_entries
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.interop.mapping import load_state_dict, parameter_paths

DRAWN_WEIGHTS_SEED = 20151205

# First three features of `ramp()` under the drawn weights, in float64 by a separate implementation.
RAMP_FEATURES = {
    "64": (1.016237463, 0.010132998, 0.319072395),
    "768": (0.528729740, 0.000000000, 0.092121584),
    "2048": (0.399999145, 0.444980466, 0.618798200),
    "spatial": (0.000000000, 0.000000000, 0.527546422),
    "logits_unbiased": (0.456331836, -0.116316073, -0.901559803),
}


class Check(NamedTuple):
    """One line of the table.

    Attributes:
      name: what is computed.
      expected: its true value.
      found: the value on this machine.
      tolerance: the largest difference that is rounding.
    """

    name: str
    expected: float
    found: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(abs(self.found - self.expected) <= self.tolerance)


def run_checks() -> Iterator[Check]:
    """All checks, in seconds: the metrics on sets with closed forms, and the network with weights drawn by a rule."""
    yield from _distances()
    yield from _scores()
    yield from _network()


def drawn_state_dict() -> dict[str, np.ndarray]:
    """The 472 tensors of the network drawn by a rule that any language can follow, under their published names.

    A tensor is made of the uniform numbers of PCG64 seeded by (20151205, crc32 of its name).
    """
    network = jax.eval_shape(InceptionV3)
    leaves = parameter_paths(network)
    tensors = {}
    for entry in inception_entries(network):
        (name,) = entry.parts
        shape = entry.transform.inverse(np.broadcast_to(np.float32(0), leaves[entry.ours].shape)).shape
        generator = np.random.Generator(np.random.PCG64([DRAWN_WEIGHTS_SEED, zlib.crc32(name.encode())]))
        tensors[name] = _scaled(name, generator.random(shape)).astype(np.float32)
    return tensors


def _scaled(name: str, uniform: np.ndarray) -> np.ndarray:
    if uniform.ndim > 1:
        return np.sqrt(6 / np.prod(uniform.shape[1:])) * (2 * uniform - 1)
    if name == "fc.bias":
        return uniform - 0.5
    least, spread = {"weight": (0.75, 0.5), "running_var": (0.8, 0.8)}.get(name.rpartition(".")[2], (-0.25, 0.5))
    return least + spread * uniform


def ramp() -> np.ndarray:
    """One 64 × 64 image [1, 64, 64, 3] uint8 whose red grows to the right and green downwards; blue is 255 − red."""
    y, x = np.mgrid[:64, :64]
    red, green = 255 * x // 63, 255 * y // 63
    return np.stack([red, green, 255 - red], -1)[None].astype(np.uint8)


def _distances() -> Iterator[Check]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(600, 96))
    whole, streamed = FeatureStatistics(96), FeatureStatistics(96)
    whole.update(rows)
    for start in range(0, len(rows), 7):
        streamed.update(rows[start : start + 7])
    mean, covariance = whole.finalise()
    yield Check("FID of a set and itself", 0, frechet_distance(mean, covariance, mean, covariance), 1e-9)
    yield Check("FID of a shift by 2", 4 * 96, frechet_distance(mean, covariance, mean + 2, covariance), 1e-9)
    scales = np.linspace(0.1, 2, 96)
    basis = np.linalg.qr(random.normal(size=(96, 96)))[0]
    wide, unit = (basis * scales**2) @ basis.T, np.eye(96)
    want = float(np.square(scales - 1).sum())
    yield Check("FID of N(0, S²) and N(0, 1)", want, frechet_distance(mean, wide, mean, unit), 1e-9)
    few = rows[:40]
    singular = np.cov(few, rowvar=False)
    yield Check("FID of 40 images to themselves", 0, frechet_distance(mean, singular, mean, singular), 1e-9)
    difference = np.abs(streamed.finalise()[1] - covariance).max()
    yield Check("covariance in batches of 7", 0, float(difference), 1e-12)


def _scores() -> Iterator[Check]:
    one_hot = np.eye(10)[np.arange(1000) % 10]
    yield Check("IS of 10 sure classes", 10, inception_score(one_hot, 100).mean, 1e-12)
    yield Check("IS of equal images", 1, inception_score(np.zeros((100, 10))).mean, 1e-12)
    # Two pairs of equal points at right angles: the kernel is 8 within a pair, 1 across.
    points = np.sqrt(2) * np.eye(2)[[0, 0, 1, 1]]
    yield Check("KID of two points and two others", 14, kernel_distance(points[:2], points[2:], None).mean, 1e-12)
    line = np.arange(8.0)[:, None]
    near = precision_recall(line, np.concatenate([line, line + 100]), k=1)
    yield Check("precision with half the images astray", 0.5, near.precision, 0)
    yield Check("recall with all real images found", 1, near.recall, 0)


def _network() -> Iterator[Check]:
    abstract = jax.eval_shape(InceptionV3)
    network = load_state_dict(abstract, drawn_state_dict(), inception_entries(abstract))
    extractor = InceptionFeatures(
        network, taps=tuple(RAMP_FEATURES), devices=jax.local_devices()[:1], images_per_device=1
    )
    measured = extractor.measure(ramp())
    # Accelerators sum in another order.
    tolerance = 2e-5 if jax.default_backend() == "cpu" else 1e-4
    for tap, want in RAMP_FEATURES.items():
        for i, value in enumerate(want):
            yield Check(f"Inception {tap}[{i}], drawn weights", value, float(measured[tap][0, i]), tolerance)
