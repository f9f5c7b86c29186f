"""Scores of uint8 images under a protocol, from batches that are seen once and not kept."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import diffusion_jax
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.metrics.frechet import frechet_distance
from diffusion_jax.evaluation.metrics.inception_score import SplitConvention, inception_score
from diffusion_jax.evaluation.metrics.kid import clip_distance, kernel_distance
from diffusion_jax.evaluation.metrics.precision_recall import precision_recall
from diffusion_jax.evaluation.networks.combined_features import CombinedFeatures
from diffusion_jax.evaluation.protocols import ScoringRules
from diffusion_jax.evaluation.references import KEYS, Reference
from diffusion_jax.evaluation.settings import LEAST_IMAGES, METRIC_NEEDS

# Of distances between moments: the tap, and the names under which files keep its moments.
MOMENT_METRICS = {"fid": "2048", "sfid": "spatial", "fd_dinov2": "dinov2"}

FEW_IMAGES = 10_000

# Conventions of the Inception Score that split images in the order in which they come.
CONSECUTIVE: tuple[SplitConvention, ...] = ("adm", "openai")


class Evaluator:
    """Measures sets of images against one reference; the compiled network is used again for each set.

    In a run of several processes all must call `measure` with the same images; each runs the network on its share.

    Args:
      protocol: by which rules.
      extractor: prepared as the protocol says, with the taps that the metrics need.
      reference: statistics of the real images; None where only the Inception Score is wanted.
      metrics: names in `METRIC_NEEDS`; None takes those that the protocol's papers report.
      allow_few: measure Fréchet distances of fewer than 2048 images.

    Raises:
      UserError: an unknown metric, or one that the reference has not enough for.
    """

    def __init__(
        self,
        protocol: ScoringRules,
        extractor: CombinedFeatures,
        reference: Reference | None,
        metrics: Sequence[str] | None = None,
        allow_few: bool = False,
    ):
        self.protocol = protocol
        self.extractor = extractor
        self.reference = reference
        self.metrics = tuple(metrics or protocol.metrics)
        self.allow_few = allow_few
        check_metrics(self.metrics)
        check_references(self.metrics, reference)
        if "kid" in self.metrics and reference is not None and reference.features is not None:
            _check_subsets(len(reference.features), protocol, reference.name)

    def measure(self, batches: Iterable[np.ndarray]) -> dict[str, Any]:
        """Scores images.

        Args:
          batches: uint8 [B, H, W, 3] each, every image of the set once.

        Returns:
          `metrics`: name to value, with `inception_score_std` and `kid_std` beside theirs; `count`; and
          `images_sha256`, the checksum of all pixels in order.

        Raises:
          UserError: images that the network does not take, or too few of them.
        """
        needs = {METRIC_NEEDS[metric] for metric in self.metrics}
        sums: dict[str, FeatureStatistics] = {
            tap: FeatureStatistics(self.extractor.widths[tap]) for tap in MOMENT_METRICS.values() if tap in needs
        }
        kept: dict[str, list[np.ndarray]] = {"features": [], "logits": [], "clip": []}
        digest, count = hashlib.sha256(), 0
        for images in batches:
            measured = self._share(images)
            digest.update(images.tobytes())
            for tap, statistics in sums.items():
                statistics.update(measured[tap], np.arange(count, count + len(images)))
            count += len(images)
            if "features" in needs:
                kept["features"].append(measured["2048"])
            if "logits" in needs:
                kept["logits"].append(measured[self.protocol.logits])
            if "clip" in needs:
                kept["clip"].append(measured["clip"])
        check_count(count, self.metrics, self.protocol, self.allow_few)
        values = self._distances(sums)
        if "inception_score" in self.metrics:
            score = inception_score(
                np.concatenate(kept["logits"]), self.protocol.inception_splits, self.protocol.inception_score
            )
            values |= {"inception_score": score.mean, "inception_score_std": score.std}
        if "features" in needs:
            values |= self._neighbours(np.concatenate(kept["features"]))
        if "cmmd" in self.metrics and self.reference is not None and self.reference.embeddings is not None:
            values["cmmd"] = clip_distance(self.reference.embeddings, np.concatenate(kept["clip"]))
        return {"metrics": values, "count": count, "images_sha256": digest.hexdigest()}

    def _share(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The features of a batch, of which each process computes a part."""
        processes = jax.process_count()
        if processes == 1:
            return self.extractor.measure(images)
        rows = -(-len(images) // processes)
        own = images[jax.process_index() * rows :][:rows]
        measured = {}
        for tap, features in self.extractor.measure(own).items():
            filled = np.zeros((rows, features.shape[1]), np.float32)
            filled[: len(features)] = features
            gathered = multihost_utils.process_allgather(filled)  # [P, rows, D]
            measured[tap] = np.asarray(gathered).reshape(-1, features.shape[1])[: len(images)]
        return measured

    def _distances(self, sums: dict[str, FeatureStatistics]) -> dict[str, float]:
        values: dict[str, float] = {}
        for metric, tap in MOMENT_METRICS.items():
            if metric in self.metrics and self.reference is not None:
                values[metric] = frechet_distance(*sums[tap].finalise(), *self.reference.moments[tap])
        return values

    def _neighbours(self, features: np.ndarray) -> dict[str, float]:
        """The metrics that compare images one by one."""
        assert self.reference is not None and self.reference.features is not None
        real = self.reference.features
        values: dict[str, float] = {}
        if "kid" in self.metrics:
            size = self.protocol.kid_subset_size
            distance = kernel_distance(real, features, self.protocol.kid_subsets, size, self.protocol.kid_seed)
            values |= {"kid": distance.mean, "kid_std": distance.std}
        if wanted := {"precision", "recall", "density", "coverage"} & set(self.metrics):
            found = precision_recall(real, features, self.protocol.neighbours, strict=self.protocol.strict)
            values |= {name: value for name, value in found._asdict().items() if name in wanted}
        return values


def check_metrics(metrics: Sequence[str], offered: Iterable[str] = METRIC_NEEDS) -> None:
    """Raises UserError, which names those `offered`, unless all are names in `METRIC_NEEDS`."""
    for metric in metrics:
        if metric not in METRIC_NEEDS:
            raise UserError(f"metric '{metric}' is not known{did_you_mean(metric, offered)}")


def check_count(count: int, metrics: Sequence[str], protocol: ScoringRules, allow_few: bool) -> None:
    """Raises UserError if a metric is asked of too few images."""
    if "kid" in metrics:
        _check_subsets(count, protocol, "the samples")
    distances = [metric for metric in metrics if metric in MOMENT_METRICS]
    if distances and count < LEAST_IMAGES and not allow_few:
        raise UserError(
            f"{distances[0]} of {count} images says little: below {LEAST_IMAGES} the covariance is singular, and "
            "papers use 50,000; give more images, or --allow-few (in a config, evaluate.allow_few=True)"
        )


def _check_subsets(count: int, protocol: ScoringRules, name: str) -> None:
    if count < protocol.kid_subset_size:
        raise UserError(
            f"kid of protocol {protocol.name} takes subsets of {protocol.kid_subset_size} images, and {name} are "
            f"{count}; give more images, or leave it out of --metrics"
        )


def check_references(metrics: Sequence[str], reference: Reference | None) -> None:
    """Raises UserError unless a reference has what metrics compare with."""
    for metric in metrics:
        _check_reference(metric, reference)


def _check_reference(metric: str, reference: Reference | None) -> None:
    need = METRIC_NEEDS[metric]
    if need == "logits":
        return
    if reference is None:
        raise UserError(f"metric '{metric}' compares with real images; name them by --reference")
    if metric in MOMENT_METRICS and need not in reference.moments:
        mean, covariance = KEYS[need]
        raise UserError(
            f"{reference.name}: has no {mean} and {covariance}, from which '{metric}' is made; leave it out of "
            "--metrics, or name real images"
        )
    if need == "clip" and reference.embeddings is None:
        raise UserError(
            f"{reference.name}: holds no images or embeddings, which '{metric}' compares with; leave it out of "
            "--metrics, or name real images"
        )
    if need == "features" and reference.features is None:
        raise UserError(
            f"{reference.name}: holds no images or features, which '{metric}' compares with; leave it out of "
            "--metrics, or name real images"
        )


def full_result(evaluator: Evaluator, measured: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
    """A result file: the values, and everything that they depend on.

    Args:
      evaluator: that measured.
      measured: from `Evaluator.measure`.
      samples: what the images are: their file and checksum, or checkpoint, sampler and labels.
    """
    protocol, reference, count = evaluator.protocol, evaluator.reference, measured["count"]
    warnings = list(reference.facts.get("warnings", [])) if reference else []
    if set(MOMENT_METRICS) & set(evaluator.metrics):
        if count < FEW_IMAGES:
            warnings.append(f"a Fréchet distance of {count} images lies far above that of {protocol.sample_count}")
            if count < LEAST_IMAGES:
                warnings.append(f"the covariance of fewer than {LEAST_IMAGES} images is singular")
        elif count != protocol.sample_count:
            warnings.append(f"{count} images, where protocol {protocol.name} takes {protocol.sample_count}")
    if "inception_score" in evaluator.metrics:
        warnings += _score_warnings(protocol, count, bool(samples.get("labels_grouped")))
    if samples.get("uint8", protocol.uint8) != protocol.uint8:
        warnings.append(f"samples made uint8 by {samples['uint8']}, where {protocol.name} takes {protocol.uint8}")
    if evaluator.extractor.precision != "float32":
        warnings.append("the network ran at reduced precision: not for publication")
    return {
        **measured,
        "protocol": protocol.describe(),
        "samples": {"uint8": "as stored", "label_law": "not known", **samples},
        "reference": reference.facts if reference else None,
        "extractor": evaluator.extractor.describe(),
        "statistics": "float64 sums, divisor n − 1; distances by symmetric eigenvalues, no offset",
        "precision_recall": "float64 distances" if {"precision", "recall"} & set(evaluator.metrics) else None,
        "warnings": warnings,
        "versions": {module.__name__: module.__version__ for module in (diffusion_jax, jax, np)},
    }


def _score_warnings(protocol: ScoringRules, count: int, labels_grouped: bool) -> list[str]:
    """What makes an Inception Score far smaller or more erratic than the published ones."""
    warnings = []
    if count < FEW_IMAGES:
        warnings.append(f"an Inception Score of {count} images lies far below that of {protocol.sample_count}")
    convention, splits = protocol.inception_score, protocol.inception_splits
    if convention == "adm" and count > splits and count % splits:
        warnings.append(
            f"the last block of the Inception Score has {count % splits} images instead of {splits}, scores less and "
            f"counts as much: give a multiple of {splits}"
        )
    if labels_grouped and convention in CONSECUTIVE:
        warnings.append(
            f"the samples come class by class, and protocol {protocol.name} splits them for the Inception Score as "
            "they come, so that a split has few classes: shuffle them with their labels"
        )
    return warnings


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Why two results must not be compared, one line each; none if they may."""

    def further(result: dict[str, Any]) -> dict[str, Any]:
        return {each["name"]: each for each in result["extractor"].get("further", [])}

    shared = further(ours).keys() & further(theirs).keys()

    def facts(result: dict[str, Any]) -> dict[str, Any]:
        reference = result.get("reference") or {}
        protocol = result.get("protocol") or {}
        return {
            "protocol": protocol.get("name"),
            "extractor": result["extractor"].get("name"),
            "weights of the extractor": result["extractor"].get("weights_sha256"),
            "resize": result["extractor"].get("resize"),
            "number of images": result["count"],
            "reference": reference.get("sha256") or reference.get("identity"),
            "uint8 rule": result["samples"].get("uint8"),
            "labels": result["samples"].get("label_law"),
        } | {name: further(result)[name] for name in sorted(shared)}

    other = facts(theirs)
    return [f"{name}: {value} and {other[name]}" for name, value in facts(ours).items() if value != other[name]]
