"""From settings to something that scores sets of images: the one way for `evaluate` and for evaluation in training."""

from collections.abc import Mapping
from typing import Any, Protocol

from diffusion_jax.evaluation.digits.scorer import DigitsScorer
from diffusion_jax.evaluation.image_sets import ImageSet
from diffusion_jax.evaluation.protocol_scorer import ProtocolScorer
from diffusion_jax.evaluation.protocols import protocol_named
from diffusion_jax.evaluation.settings import DIGITS_METRICS, ScoringConfig
from diffusion_jax.evaluation.shapes_scorer import ShapesScorer
from diffusion_jax.pictures import ROUNDED, Uint8Rule


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
