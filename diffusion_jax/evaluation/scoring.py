"""From settings to something that scores sets of images: the one way for `evaluate` and for evaluation in training."""

from collections.abc import Mapping
from typing import Any, Protocol

from diffusion_jax.data.digits import NATIVE_SIZE
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits.scorer import DigitsScorer
from diffusion_jax.evaluation.image_sets import ImageSet
from diffusion_jax.evaluation.protocol_scorer import ProtocolScorer
from diffusion_jax.evaluation.protocols import protocol_named
from diffusion_jax.evaluation.settings import DIGITS_METRICS, ImageSettings, ScoringConfig
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


def open_scorer(
    config: ScoringConfig, image_shape: tuple[int, int, int], count: int, settings: ImageSettings | None = None
) -> Scorer:
    """Opens references and weights, and refuses what cannot be measured before any image is drawn.

    Args:
      config: how to score.
      image_shape: (H, W, C) of the images.
      count: how many images the sets will have.
      settings: of the images that the model was trained on, under which the reference is read; None if not known.

    Raises:
      UserError: an unknown metric, too few images, or a reference or weights that are missing or do not fit.
    """
    _check_kind(config, image_shape, settings)
    scorer = DigitsScorer if config.scores_digits(image_shape) else ProtocolScorer
    return (ShapesScorer if config.scores_shapes else scorer)(config, image_shape, count, settings)


def _check_kind(config: ScoringConfig, image_shape: tuple[int, int, int], settings: ImageSettings | None) -> None:
    """Refuses a built-in data set as the reference of images that can be none of it, unless a protocol is named."""
    kind = (config.reference or "").partition(":")[0]
    dataset = settings.dataset if settings else None
    if config.protocol is not None or kind == dataset:
        return
    remedy = f"name images like those that the model was trained on, or --protocol to compare with {kind} all the same"
    if kind == "digits" and dataset != "cache" and not config.scores_digits(image_shape):
        digits, samples = f"{NATIVE_SIZE}×{NATIVE_SIZE}", f"{image_shape[0]}×{image_shape[1]}"
        raise UserError(f"--reference {config.reference}: digits are {digits}, the samples {samples}: {remedy}")
    if kind == "shapes" and dataset in ("folder", "tfds", "digits"):
        raise UserError(f"--reference {config.reference}: the samples are of a model of '{dataset}': {remedy}")


def uint8_rule(protocol: str | None) -> Uint8Rule:
    """The rule of a protocol by its name; where none is named, the samples are rounded to nearest.

    Raises:
      UserError: there is no such protocol.
    """
    return ROUNDED if protocol is None else protocol_named(protocol).uint8
