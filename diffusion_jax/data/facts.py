"""What a run keeps of its data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.data.latents import LatentCache
from diffusion_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What a model must know of its data; kept with a checkpoint, so that sampling needs no data.

    Attributes:
      num_classes: number of classes K.
      class_names: their names, by label.
      identity: the data set, its split and transform in one line.
      encoder: fingerprint of the autoencoder that made the latents of a cache; None where the data are images.
    """

    num_classes: int
    class_names: tuple[str, ...]
    identity: str
    encoder: str | None = None

    @classmethod
    def of(cls, source: Source) -> "DatasetFacts":
        encoder = source.encoder if isinstance(source, LatentCache) else None
        return cls(source.num_classes, tuple(source.class_names), source.identity, encoder)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, kept with a checkpoint."""
        return {**vars(self), "class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DatasetFacts":
        """The inverse of `to_json`; checkpoints from before there were caches know of no encoder."""
        names = tuple(values["class_names"])
        return cls(values["num_classes"], names, values["identity"], values.get("encoder"))
