"""Scores 8×8 digits by their classifier, beside held-out digits."""

from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits import measure as digits_metrics
from diffusion_jax.evaluation.digits.extractor import extractor_for
from diffusion_jax.evaluation.image_sets import ImageSet, open_image_set
from diffusion_jax.evaluation.settings import DIGITS_METRICS, ImageSettings, ScoringConfig


class DigitsScorer:
    """Scores 8×8 digits by their classifier, beside held-out digits; arguments as of `open_scorer`."""

    def __init__(
        self,
        config: ScoringConfig,
        image_shape: tuple[int, int, int],
        count: int,
        settings: ImageSettings | None = None,
    ):
        self.metrics = DIGITS_METRICS if config.metrics is None else config.metrics
        digits_metrics.check_metrics(self.metrics)
        if config.reference is None:
            raise UserError("--reference is missing: digits, or a .npz file of images")
        self.extractor = extractor_for(image_shape)
        self.reference = open_image_set(config.reference, image_shape, settings=settings)
        unseen = self.extractor.real_images_unseen_by(config.reference)
        self.held_out = open_image_set(unseen, image_shape) if unseen else None

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """See `Scorer`."""
        return digits_metrics.evaluate(samples, self.reference, self.extractor, self.metrics, self.held_out)
