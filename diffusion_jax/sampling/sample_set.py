"""Samples of a model as a set of images to score: drawn as they are measured, and not kept."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion_jax.data import Batch
from diffusion_jax.evaluation.image_sets import grouped
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.pictures import to_rgb
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.requests import Requests, captions_of


class DrawnImages:
    """An `ImageSet` that draws each image when it is asked for it; all processes must take part.

    Args:
      system: the run's parts.
      stream: the compiled sampler.
      model: the weights to draw from.
      frozen: the frozen networks.
      requests: what each of the N samples is to show.
      seed: of the samples.
      facts: what a result states beside sampler and guidance: the run, the checkpoint.

    Attributes:
      labels: [N] integers, the class of each sample; None if they obey none.
    """

    def __init__(
        self,
        system: DiffusionSystem,
        stream: SampleStream,
        model: Any,
        frozen: Frozen,
        requests: Requests,
        seed: int,
        facts: dict[str, Any],
    ):
        self.system, self.stream = system, stream
        self.model, self.frozen = model, frozen
        self.requests, self.seed, self.facts = requests, seed, facts
        self.labels = np.asarray(requests.fields["label"], np.int32) if stream.labelled else None
        self.name = f"samples of {facts['workdir']}"
        self.count = len(requests)
        self.image_shape = (system.data.image_size, system.data.image_size, 3)
        self.settings = ImageSettings.of(system.data)

    def raw_batches(self) -> Iterator[np.ndarray]:
        """The images in order, uint8 [B, H, W, C] with the channels of the model."""
        return self.stream(self.model, self.frozen, self.requests, self.seed)

    def batches(self) -> Iterator[Batch]:
        """The images in order: `image` uint8 [B, H, W, 3] and, unless they obey none, `label` int [B]."""
        start = 0
        for images in self.raw_batches():
            label = {} if self.labels is None else {"label": self.labels[start : start + len(images)]}
            yield {"image": to_rgb(images), **label}
            start += len(images)

    def captions(self, count: int) -> list[str] | None:
        """What the first `count` samples were to show, the name of a class or a caption; None where they obey none."""
        return captions_of(self.requests[:count], self.system.facts.class_names) if self.stream.conditional else None

    def describe(self) -> dict[str, Any]:
        """What a result file says of them, ready for JSON."""
        return {
            **self.facts,
            **({} if self.stream.labelled else {"label_law": None}),
            "data": self.settings.facts(),
            "seed": self.seed,
            "uint8": self.stream.uint8,
            "sampler": dict(self.system.config["sampler"]),
            "guidance": dict(self.system.config["guidance"]),
            **({} if self.labels is None else {"labels_grouped": grouped(self.labels)}),
            "count": self.count,
            "image_shape": list(self.image_shape),
        }
