"""How many images of the data set `shapes` show the shape that they were asked to show."""

from typing import Any

import jax
import numpy as np

import diffusion_jax
from diffusion_jax.data.shapes import Shapes, recognise
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.image_sets import ImageSet, open_image_set
from diffusion_jax.evaluation.settings import ImageSettings, ScoringConfig

METRICS = ("class_agreement",)
LEAST_OVERLAP = 0.7


class ShapesScorer:
    """Scores samples by `data.shapes.recognise`, which needs no training, beside rendered images of the test split.

    Args:
      config: how to score; its reference is `shapes` or `shapes:OPTIONS`.
      image_shape: (H, W, C) of the samples.
      count: how many there are.
      settings: of the images that the model was trained on; None if not known.

    Raises:
      UserError: another metric than class_agreement, or images that are not square or of too few pixels.
    """

    def __init__(
        self,
        config: ScoringConfig,
        image_shape: tuple[int, int, int],
        count: int,
        settings: ImageSettings | None = None,
    ):
        for name in config.metrics or METRICS:
            if name not in METRICS:
                raise UserError(f"metric '{name}' is not known for shapes{did_you_mean(name, METRICS)}")
        self.reference = open_image_set(str(config.reference), image_shape, settings=settings)
        self.held_out = open_image_set(str(config.reference), image_shape, split="test", settings=settings)

    def measure(self, samples: ImageSet) -> dict[str, Any]:
        """The result, ready for JSON.

        Args:
          samples: labelled images, the labels being those of `Shapes`.

        Returns:
          `class_agreement`, the share in 0 … 1 of images whose largest shape is of the kind that their label names;
          `unrecognised`, the share that show no shape; `held_out`, both of as many images of the test split (all
          5,000 if there are more samples); `count`, `samples`, `reference`, `extractor`, `conventions`, `versions`.

        Raises:
          UserError: samples without labels, or with labels of other classes.
        """
        values = _recognised(samples, samples.count)
        held_out = {**_recognised(self.held_out, samples.count), **self.held_out.describe()}
        held_out["count"] = min(samples.count, self.held_out.count)
        return {
            **values,
            "held_out": held_out,
            "count": samples.count,
            "samples": samples.describe(),
            "reference": self.reference.describe(),
            "extractor": {"name": "shapes-recogniser", "least_overlap": LEAST_OVERLAP},
            "conventions": {
                "class_agreement": "share of the images whose largest region brighter than any background "
                "fits the outline of the label's kind best and overlaps it by least_overlap",
                "held_out": "the same of rendered images of the test split",
            },
            "warnings": [],
            "versions": {module.__name__: module.__version__ for module in (diffusion_jax, jax, np)},
        }


def _recognised(images: ImageSet, count: int) -> dict[str, Any]:
    """The values of the first `count` images, or of all if there are fewer."""
    seen, right, unrecognised = 0, 0, 0
    for batch in images.batches():
        if "label" not in batch:
            raise UserError(f"{images.name}: has no labels (arr_1), so that class_agreement is unknown; add them")
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            if not 0 <= label < Shapes.num_classes:
                last = Shapes.num_classes - 1
                raise UserError(f"{images.name}: label {label} is not one of the classes 0 … {last} of shapes; mend it")
            if seen < count:
                shape = recognise(image, LEAST_OVERLAP)
                seen += 1
                right += shape is not None and shape.kind == Shapes.class_names[label]
                unrecognised += shape is None
        if seen == count:
            break
    return {"class_agreement": right / seen, "unrecognised": unrecognised / seen}
