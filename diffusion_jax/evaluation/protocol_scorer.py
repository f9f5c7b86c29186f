"""Scores images by the Inception network and others under a protocol."""

from collections.abc import Iterable
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.evaluator import Evaluator, check_count, check_metrics, check_references, full_result
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
from diffusion_jax.evaluation.settings import METRIC_NEEDS, ImageSettings, ScoringConfig
from diffusion_jax.files import user_path

DEFAULT_PROTOCOL = "adm"


# Networks beside Inception, by the tap that metrics need of them.
FURTHER: dict[str, VisionKind] = {"dinov2": DINOV2, "clip": CLIP}


def offered_metrics(config: ScoringConfig) -> list[str]:
    """The metrics whose networks can be had: those of DINOv2 and CLIP only where the user has the weights."""
    return [
        metric
        for metric, need in METRIC_NEEDS.items()
        if need not in FURTHER or find_weights(FURTHER[need], config.weights(need))
    ]


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


class ProtocolScorer:
    """Scores images by the Inception network under a protocol; arguments as of `open_scorer`."""

    def __init__(
        self,
        config: ScoringConfig,
        image_shape: tuple[int, int, int],
        count: int,
        settings: ImageSettings | None = None,
    ):
        protocol = protocol_named(config.protocol or DEFAULT_PROTOCOL)
        metrics = config.metrics or protocol.metrics
        check_metrics(metrics, offered_metrics(config))
        check_count(count, metrics, protocol, config.allow_few)
        if config.reference is None:
            check_references(metrics, None)
        extractor = open_extractor(config, protocol, {METRIC_NEEDS[metric] for metric in metrics})
        reference = None
        if config.reference is not None:
            path = user_path(config.reference) if config.reference.endswith(".npz") else None
            if path is not None and (is_statistics_file(path) or not path.is_file()):
                reference = read_reference(path, extractor, config.allow_other_resize, image_shape, settings)
            else:
                images = open_image_set(config.reference, image_shape, settings=settings)
                reference = reference_from_images(images, extractor)
        self.evaluator = Evaluator(protocol, extractor, reference, metrics, config.allow_few)

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """See `Scorer`."""
        measured = self.evaluator.measure(batch["image"] for batch in with_progress(samples))
        if measured["count"] != samples.count:
            raise UserError(f"{samples.name}: has {measured['count']} images, not {samples.count} as it said")
        return full_result(self.evaluator, measured, samples.describe())
