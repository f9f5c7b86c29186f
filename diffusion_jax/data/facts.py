"""What a run keeps of its data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.data.latents import LatentCache
from diffusion_jax.data.sources import Source
from diffusion_jax.records import RecordSpec, spec_from_json, spec_to_json


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What a model must know of its data; kept with a checkpoint, so that sampling needs no data.

    Attributes:
      num_classes: number of classes K.
      class_names: their names, by label.
      identity: the data set, its split and transform in one line.
      encoder: fingerprint of the autoencoder that made the latents of a cache; None where the data are images.
      record_spec: what the records hold; empty where that is not known.
    """

    num_classes: int
    class_names: tuple[str, ...]
    identity: str
    encoder: str | None = None
    record_spec: RecordSpec = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, source: Source) -> "DatasetFacts":
        encoder = source.encoder if isinstance(source, LatentCache) else None
        return cls(source.num_classes, tuple(source.class_names), source.identity, encoder, source.record_spec)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, kept with a checkpoint."""
        names, spec = list(self.class_names), spec_to_json(self.record_spec)
        return {**vars(self), "class_names": names, "record_spec": spec}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DatasetFacts":
        """The inverse of `to_json`; old checkpoints lack the encoder, the record spec or both."""
        names = tuple(values["class_names"])
        spec = spec_from_json(values.get("record_spec", {}))
        return cls(values["num_classes"], names, values["identity"], values.get("encoder"), spec)
