"""Samples of a model as a set of images to score: drawn as they are measured, and not kept."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion_jax.data import Batch
from diffusion_jax.pictures import to_rgb
from diffusion_jax.runs.system import System
from diffusion_jax.sampling.generation import SampleStream


class DrawnImages:
    """An `ImageSet` that draws each image when it is asked for it; all processes must take part.

    Args:
      system: the run's parts.
      stream: the compiled sampler.
      model: the weights to draw from.
      first_stage: the first stage.
      labels: [N] integers, the class of each sample.
      seed: of the samples.
      facts: what a result states beside sampler and guidance: the run, the checkpoint.
    """

    def __init__(
        self,
        system: System,
        stream: SampleStream,
        model: Any,
        first_stage: Any,
        labels: np.ndarray,
        seed: int,
        facts: dict[str, Any],
    ):
        self.system, self.stream = system, stream
        self.model, self.first_stage = model, first_stage
        self.labels, self.seed, self.facts = labels, seed, facts
        self.name = f"samples of {facts['workdir']}"
        self.count = len(labels)
        self.image_shape = (system.data.image_size, system.data.image_size, 3)

    def batches(self) -> Iterator[Batch]:
        """The images in order: `image` uint8 [B, H, W, 3] and, unless they obey none, `label` int [B]."""
        start = 0
        for images in self.stream(self.model, self.first_stage, self.labels, self.seed):
            label = {"label": self.labels[start : start + len(images)]} if self.stream.labelled else {}
            yield {"image": to_rgb(images), **label}
            start += len(images)

    def captions(self, count: int) -> list[str] | None:
        """The names of the classes of the first `count` samples; None where they obey none."""
        if not self.stream.labelled:
            return None
        return [self.system.facts.class_names[label] for label in self.labels[:count]]

    def describe(self) -> dict[str, Any]:
        """What a result file says of them, ready for JSON."""
        return {
            **self.facts,
            **({} if self.stream.labelled else {"label_law": None}),
            "seed": self.seed,
            "uint8": self.stream.uint8,
            "sampler": dict(self.system.config["sampler"]),
            "guidance": dict(self.system.config["guidance"]),
            "count": self.count,
            "image_shape": list(self.image_shape),
        }
