"""From settings to something that scores sets of images: the one way for `evaluate` and for evaluation in training."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

from diffusion_jax.data.digits import NATIVE_SIZE
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.digits import measure as digits_metrics
from diffusion_jax.evaluation.digits.extractor import extractor_for
from diffusion_jax.evaluation.evaluator import (
    METRIC_NEEDS,
    Evaluator,
    check_count,
    check_metrics,
    check_references,
    full_result,
)
from diffusion_jax.evaluation.image_sets import ImageSet, open_image_set, with_progress
from diffusion_jax.evaluation.networks.combined_features import CombinedFeatures
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.evaluation.networks.inception_weights import load_inception
from diffusion_jax.evaluation.networks.vision_features import VisionFeatures
from diffusion_jax.evaluation.networks.vision_weights import (
    CLIP,
    DINOV2,
    VisionKind,
    find_weights,
    read_vision_transformer,
)
from diffusion_jax.evaluation.protocols import ScoringRules, protocol_named
from diffusion_jax.evaluation.references import is_statistics_file, read_reference, reference_from_images
from diffusion_jax.evaluation.shapes_scorer import ShapesScorer
from diffusion_jax.pictures import ROUNDED, Uint8Rule

DIGITS_METRICS = ("frechet_distance", "class_agreement")
LOWER_IS_BETTER = ("fid", "sfid", "kid", "fd_dinov2", "cmmd", "frechet_distance")
DEFAULT_PROTOCOL = "adm"

# Networks beside Inception, by the tap that metrics need of them.
FURTHER: dict[str, VisionKind] = {"dinov2": DINOV2, "clip": CLIP}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How images are scored.

    Attributes:
      reference: real images or their statistics: a .npz file, `digits[:SPLIT]`, `shapes`, `folder:PATH` or
        `tfds:NAME`; None where only the Inception Score is wanted.
      protocol: rules of the Inception metrics; None means the recogniser where the reference is `shapes`, the digits
        classifier for 8×8 images, and `adm` for others.
      metrics: their names; None takes those that the protocol's papers report.
      inception_weights: the weight file of the FID network; None means the one in the cache folder.
      dinov2_weights: that of DINOv2, for `fd_dinov2`.
      clip_weights: that of CLIP, for `cmmd`.
      precision: of that network; `fast` values are not for publication.
      allow_few: measure Fréchet distances of fewer than 2048 images.
      allow_other_resize: take statistics made under other rules.
    """

    reference: str | None = None
    protocol: Literal["adm", "ldm", "uvit", "clean", "edm"] | None = None
    metrics: tuple[str, ...] | None = None
    inception_weights: str | None = None
    dinov2_weights: str | None = None
    clip_weights: str | None = None
    precision: Literal["float32", "fast"] = "float32"
    allow_few: bool = False
    allow_other_resize: bool = False

    @property
    def scores_shapes(self) -> bool:
        """Whether images are scored by what recognises the data set `shapes`."""
        return self.protocol is None and (self.reference or "").partition(":")[0] == "shapes"

    def scores_digits(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether images of this shape are scored by the digits classifier."""
        return self.protocol is None and not self.scores_shapes and image_shape[:2] == (NATIVE_SIZE, NATIVE_SIZE)

    def weights(self, tap: str) -> str | None:
        """The weight file of a network in `FURTHER` that the settings name."""
        return {"dinov2": self.dinov2_weights, "clip": self.clip_weights}[tap]

    def offered(self) -> list[str]:
        """The metrics whose networks can be had: those of DINOv2 and CLIP only where the user has the weights."""
        return [
            metric
            for metric, need in METRIC_NEEDS.items()
            if need not in FURTHER or find_weights(FURTHER[need], self.weights(need))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """The `evaluate` section: how the samples of a model in training are scored, every `train.eval_every` steps.

    Attributes:
      num: number of samples.
      labels: their classes: "balanced", "uniform", a range or a list.
      best: the metric by which the best checkpoint is kept beside the newest ones; None keeps none.
    """

    num: int = 10_000
    labels: str = "uniform"
    best: str | None = None

    def __post_init__(self):
        if self.num < 2:
            raise UserError(f"evaluate.num={self.num}: must be at least 2")
        known = {*METRIC_NEEDS, *DIGITS_METRICS}
        if self.best is not None and self.best not in known:
            raise UserError(f"evaluate.best: metric '{self.best}' is not known{did_you_mean(self.best, known)}")

    def improves(self, value: float, on: float | None) -> bool:
        """Whether a value of the metric `best` beats an older one, None being none."""
        if on is None:
            return True
        return value < on if self.best in LOWER_IS_BETTER else value > on


class Scorer(Protocol):
    """Scores any number of sets of images against one reference."""

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """A result ready for JSON, with everything that its values depend on."""
        ...


def values_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result by name."""
    return result.get("metrics") or {name: result[name] for name in DIGITS_METRICS if name in result}


def open_scorer(config: ScoringConfig, image_shape: tuple[int, int, int], count: int) -> Scorer:
    """Opens references and weights, and refuses what cannot be measured before any image is drawn.

    Args:
      config: how to score.
      image_shape: (H, W, C) of the images.
      count: how many images the sets will have.

    Raises:
      UserError: an unknown metric, too few images, or a reference or weights that are missing or do not fit.
    """
    if config.scores_shapes:
        return ShapesScorer(config, image_shape, count)
    return (DigitsScorer if config.scores_digits(image_shape) else ProtocolScorer)(config, image_shape, count)


def uint8_rule(protocol: str | None) -> Uint8Rule:
    """The rule of a protocol by its name; where none is named, the samples are rounded to nearest.

    Raises:
      UserError: there is no such protocol.
    """
    return ROUNDED if protocol is None else protocol_named(protocol).uint8


def open_extractor(config: ScoringConfig, protocol: ScoringRules, taps: Iterable[str]) -> CombinedFeatures:
    """The networks that give some taps, or features of the Inception network of which a metric needs any.

    Args:
      config: where the weights are.
      protocol: how images are prepared.
      taps: what metrics need, as in `METRIC_NEEDS`.

    Raises:
      UserError: weights are missing or are others.
    """
    members: list[InceptionFeatures | VisionFeatures] = []
    if set(taps) - FURTHER.keys():
        network, checksum = load_inception(config.inception_weights)
        members.append(InceptionFeatures.under(protocol, network, checksum, config.precision))
    for tap, kind in FURTHER.items():
        if tap in taps:
            transformer, checksum = read_vision_transformer(kind, config.weights(tap))
            resize = protocol.dinov2_resize if tap == "dinov2" else "pil_bicubic_uint8"
            members.append(VisionFeatures(kind, transformer, tap, resize=resize, weights_sha256=checksum))
    return CombinedFeatures(members)


class DigitsScorer:
    """Scores 8×8 digits by their classifier, beside held-out digits; arguments as of `open_scorer`."""

    def __init__(self, config: ScoringConfig, image_shape: tuple[int, int, int], count: int):
        self.metrics = DIGITS_METRICS if config.metrics is None else config.metrics
        digits_metrics.check_metrics(self.metrics)
        if config.reference is None:
            raise UserError("--reference is missing: digits, or a .npz file of images")
        self.extractor = extractor_for(image_shape)
        self.reference = open_image_set(config.reference, image_shape)
        unseen = self.extractor.real_images_unseen_by(config.reference)
        self.held_out = open_image_set(unseen, image_shape) if unseen else None

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """See `Scorer`."""
        return digits_metrics.evaluate(samples, self.reference, self.extractor, self.metrics, self.held_out)


class ProtocolScorer:
    """Scores images by the Inception network under a protocol; arguments as of `open_scorer`."""

    def __init__(self, config: ScoringConfig, image_shape: tuple[int, int, int], count: int):
        protocol = protocol_named(config.protocol or DEFAULT_PROTOCOL)
        metrics = config.metrics or protocol.metrics
        check_metrics(metrics, config.offered())
        check_count(count, metrics, protocol, config.allow_few)
        if config.reference is None:
            check_references(metrics, None)
        extractor = open_extractor(config, protocol, {METRIC_NEEDS[metric] for metric in metrics})
        reference = None
        if config.reference is not None:
            path = pathlib.Path(config.reference)
            if path.suffix == ".npz" and (is_statistics_file(path) or not path.is_file()):
                reference = read_reference(path, extractor, config.allow_other_resize)
            else:
                reference = reference_from_images(open_image_set(config.reference, image_shape), extractor)
        self.evaluator = Evaluator(protocol, extractor, reference, metrics, config.allow_few)

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """See `Scorer`."""
        measured = self.evaluator.measure(batch["image"] for batch in with_progress(samples))
        if measured["count"] != samples.count:
            raise UserError(f"{samples.name}: has {measured['count']} images, not {samples.count} as it said")
        return full_result(self.evaluator, measured, samples.describe())
