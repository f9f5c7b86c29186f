"""Metrics by name, and the result that states everything a value depends on."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import diffusion_jax
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.digits.extractor import Classifier, Extractor
from diffusion_jax.evaluation.image_sets import ImageSet
from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.metrics.frechet import frechet_distance


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the metrics know of a set of images.

    Attributes:
      features: [N, D] float32.
      predictions: [N] int32, the recognised classes; None if no metric asked for them.
      labels: [N] integers, the intended classes; None if there are none.
    """

    features: np.ndarray
    predictions: np.ndarray | None
    labels: np.ndarray | None

    def take(self, count: int) -> "Measured":
        """`count` ≤ N of the images, evenly spaced over all of them in the order of their labels.

        Each class keeps its share to within one image, whether the set is sorted by class or shuffled.
        """
        order = np.arange(len(self.features)) if self.labels is None else np.argsort(self.labels, kind="stable")
        chosen = order[np.arange(count) * len(order) // count]

        def part(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[chosen]

        return Measured(self.features[chosen], part(self.predictions), part(self.labels))


Moments = tuple[np.ndarray, np.ndarray]


def _frechet_distance(measured: Measured, reference: Moments) -> float:
    statistics = FeatureStatistics(measured.features.shape[1])
    statistics.update(measured.features)
    return frechet_distance(*statistics.finalise(), *reference)


def _class_agreement(measured: Measured, reference: Moments) -> float:
    return float(np.mean(np.asarray(measured.predictions) == np.asarray(measured.labels)))


METRICS: dict[str, Callable[[Measured, Moments], float]] = {
    "frechet_distance": _frechet_distance,
    "class_agreement": _class_agreement,
}
"""Metrics by the names that `--metrics` takes and results use."""

CONVENTIONS = {
    "frechet_distance": "|mu1 − mu2|² + tr S1 + tr S2 − 2 tr (S1 S2)^½ of the extractor's features; not FID",
    "class_agreement": "share of the images whose most likely class is their label",
    "held_out": "the same metrics of real images that neither the extractor nor the reference has seen",
    "frechet_distance_same_count": "of held_out.count samples, to be compared with held_out.frechet_distance",
    "choice_of_same_count": "where a set is larger: evenly spaced images of the set in stable order of its labels",
    "covariance": "divisor n − 1; float64 sums about a shift",
    "matrix_root": "symmetric eigenvalues; singular values where a covariance is rank-deficient; float64, no offset",
    "pixels": "uint8 as stored, not quantised again",
}


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuses names that are not in `METRICS`, before any work is done for them.

    Raises:
      UserError: an unknown name, or none at all.
    """
    if not metrics:
        raise UserError(f"--metrics names no metric; there are {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"metric '{name}' is not known{did_you_mean(name, METRICS)}")


def evaluate(
    samples: ImageSet,
    reference: ImageSet,
    extractor: Extractor,
    metrics: Sequence[str] = tuple(METRICS),
    held_out: ImageSet | None = None,
) -> dict[str, Any]:
    """Measures samples, and real images beside them.

    Args:
      samples: the images to judge.
      reference: the images they should be distributed like.
      extractor: the network through which both are seen.
      metrics: names in `METRICS`.
      held_out: labelled real images that neither the extractor nor the reference has seen; their values say what is
        good.

    Returns:
      A result ready for JSON. Each metric's value under its name (`frechet_distance` in squared units of the features,
      `class_agreement` in 0 … 1). `held_out`: their values, count and identity, or None; with them
      `frechet_distance_same_count`, the distance of as many of the samples. Then all that the values depend on:
      `count`, `samples`, `reference`, `extractor`, `conventions`, `warnings`, `versions`.

    Raises:
      UserError: an unknown metric, one that the extractor or the samples cannot give, or images it does not take.
    """
    check_metrics(metrics)
    classify = "class_agreement" in metrics
    measured = _measure(samples, extractor, classify)
    moments = _reference_moments(reference, extractor)
    result: dict[str, Any] = {name: METRICS[name](measured, moments) for name in metrics} | {"held_out": None}
    if held_out is not None:
        count = min(samples.count, held_out.count)
        real = _measure(held_out, extractor, classify).take(count)
        values = {name: METRICS[name](real, moments) for name in metrics}
        result["held_out"] = {**values, **held_out.describe(), "count": count}
        if "frechet_distance" in metrics:
            result["frechet_distance_same_count"] = _frechet_distance(measured.take(count), moments)
    return result | {
        "count": samples.count,
        "samples": samples.describe(),
        "reference": reference.describe(),
        "extractor": extractor.describe(),
        "conventions": CONVENTIONS,
        "warnings": _warnings(samples, reference, extractor) if "frechet_distance" in metrics else [],
        "versions": {module.__name__: module.__version__ for module in (diffusion_jax, jax, np)},
    }


def _measure(images: ImageSet, extractor: Extractor, classify: bool) -> Measured:
    """Runs the extractor over a set of images; with `classify`, recognises their classes too."""
    classifier = extractor if isinstance(extractor, Classifier) else None
    if classify and classifier is None:
        raise UserError(f"class_agreement: {extractor.name} recognises no classes; choose other --metrics")
    features, predictions, labels = [], [], []
    for batch in images.batches():
        with _naming(images):
            features.append(extractor.features(batch["image"]))
            if classify and classifier is not None:
                _check_labels(batch.get("label"), classifier)
                predictions.append(classifier.predict(batch["image"]))
        if "label" in batch:
            labels.append(batch["label"])
    return Measured(
        np.concatenate(features),
        np.concatenate(predictions) if predictions else None,
        np.concatenate(labels) if labels else None,
    )


def _check_labels(labels: np.ndarray | None, extractor: Classifier) -> None:
    if labels is None:
        raise UserError(
            "has no labels (arr_1), so that class_agreement is unknown; add them, or choose --metrics=frechet_distance"
        )
    wrong = (labels < 0) | (labels >= extractor.num_classes)
    if wrong.any():
        raise UserError(
            f"label {labels[wrong][0]} is not one of the classes 0 … {extractor.num_classes - 1} that {extractor.name} "
            "recognises; mend it, or choose --metrics=frechet_distance"
        )


def _reference_moments(images: ImageSet, extractor: Extractor) -> Moments:
    """Mean [D] and covariance [D, D] of the features, which a large reference is not kept for."""
    statistics = FeatureStatistics(extractor.feature_width)
    for batch in images.batches():
        with _naming(images):
            statistics.update(extractor.features(batch["image"]))
    with _naming(images):
        return statistics.finalise()


@contextlib.contextmanager
def _naming(images: ImageSet) -> Iterator[None]:
    """Adds to errors about images which images they are."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{images.name}: {error}") from error


def _warnings(samples: ImageSet, reference: ImageSet, extractor: Extractor) -> list[str]:
    width = extractor.feature_width
    sets = {"samples": samples.count, "reference images": reference.count}
    return [
        f"{count} {name} are too few for {width} features: the covariance is singular and the distance far too large"
        for name, count in sets.items()
        if count <= width
    ]
