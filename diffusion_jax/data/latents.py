"""Stored latents: the posterior moments of each image and of its mirror image, in ArrayRecord files.

A cache is a folder with `metadata.json` (`CacheMetadata`), shards `latents-00003-of-00010.array_record` of `shard_size`
records each, the last one shorter, and beside each shard its latent statistics as JSON. A record is the bytes of one
element of `CacheMetadata.record_dtype`, and behind them, where the data set has text, a JSON object of it in UTF-8.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusion_jax.errors import UserError
from diffusion_jax.files import absolute, list_files, local_copy, user_path, write_atomically
from diffusion_jax.records import TEXT, Field, Record, RecordSpec, array_fields, spec_from_json, spec_to_json

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

METADATA = "metadata.json"

MOMENTS = ("mean", "std")
"""What a record may hold of a posterior; a first stage without noise has a mean alone."""

MIRRORED = "mirrored_"
"""Begins the names of the moments of the mirror image."""

# What a `DataConfig` says of the images themselves.
SETTINGS = ("image_size", "channels", "split", "exif_orientation", "crop")

# Caches of format 1 hold a label and nothing else beside latents.
FORMAT = 2
LABELS: RecordSpec = {"label": Field((), "int32")}


def image_settings(config: Any) -> dict[str, Any]:
    """The settings of a `DataConfig` that decide which images there are and what they look like."""
    return {key: getattr(config, key) for key in SETTINGS}


@dataclasses.dataclass(frozen=True)
class CacheMetadata:
    """What a cache holds.

    Attributes:
      images: identity of the source that was encoded.
      settings: its `image_settings`.
      num_classes: number of classes.
      class_names: their names, by label.
      image_shape: (H, W, C) of the images.
      autoencoder: the autoencoder, for people: its name and weights.
      encoder: its fingerprint.
      moments: which of `MOMENTS` there are.
      latent_shape: (h, w, c) of each.
      dtype: of the moments: "float32", "float16" or "bfloat16".
      records: number of records, one for each of the source, in its order.
      shard_size: records in a shard.
      shard_bytes: sizes of the shards; empty while the cache is being written.
      fields: what a record holds beside moments and `source_id`.
      statistics: JSON of the `LatentStatistics` of latents drawn from all images and mirror images, not scaled; None
        while the cache is being written.
      format: version of this layout.
    """

    images: str
    settings: Mapping[str, Any]
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    autoencoder: str
    encoder: str
    moments: tuple[str, ...]
    latent_shape: tuple[int, int, int]
    dtype: str
    records: int
    shard_size: int
    shard_bytes: tuple[int, ...] = ()
    statistics: Mapping[str, Any] | None = None
    fields: RecordSpec = dataclasses.field(default_factory=lambda: dict(LABELS))
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.shard_size)

    @property
    def record_dtype(self) -> np.dtype:
        """The structure of a record: moments, mirrored moments, the arrays of `fields` and `source_id` int64.

        `source_id` is the number of the image in its source, which differs from that of the record where the source
        replaced an unreadable image.
        """
        spec = {**self.moment_spec(mirrored=True), **self.fields}
        arrays = [(name, jnp.dtype(spec[name].dtype), spec[name].shape) for name in array_fields(spec)]
        return np.dtype([*arrays, ("source_id", "<i8")])

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The names of the fields of text."""
        return tuple(name for name, field in self.fields.items() if field.dtype == TEXT)

    def moment_spec(self, mirrored: bool) -> dict[str, Field]:
        """The fields of the moments, and if `mirrored` those of mirror images."""
        prefixes = ("", MIRRORED) if mirrored else ("",)
        return {prefix + name: Field(self.latent_shape, self.dtype) for prefix in prefixes for name in self.moments}

    def shard_name(self, shard: int) -> str:
        """The file name of a shard."""
        return f"latents-{shard:05}-of-{self.shards:05}.array_record"

    def shard_records(self, shard: int) -> range:
        """The records of a shard."""
        return range(self.records)[shard * self.shard_size : (shard + 1) * self.shard_size]

    def write(self, folder: epath.Path) -> None:
        """Writes `metadata.json` into a folder."""
        values = {**dataclasses.asdict(self), "fields": spec_to_json(self.fields)}
        write_atomically(folder / METADATA, (json.dumps(values, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: epath.Path) -> "CacheMetadata | None":
        """Reads the metadata of a cache; None if the folder has none.

        Raises:
          UserError: it is damaged, or of another version.
        """
        path = folder / METADATA
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text())
            if values["format"] not in (1, FORMAT):
                raise UserError(f"{path} is of format {values['format']}, this version reads {FORMAT}: encode again")
            values |= {"format": FORMAT, "fields": spec_from_json(values.get("fields", spec_to_json(LABELS)))}
            lists = ("class_names", "image_shape", "moments", "latent_shape", "shard_bytes")
            return cls(**{**values, **{key: tuple(values[key]) for key in lists}})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): encode again") from error


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A whole file, in the words of array_record's data source, which would otherwise open each to count records."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class _Shards:
    """The shards of a cache, each opened, and in a bucket fetched, when a record of it is first read; by any thread."""

    def __init__(self, folder: epath.Path, metadata: CacheMetadata):
        self._folder, self._metadata = folder, metadata
        self._forget()

    def _forget(self) -> None:
        self._opened: list[ArrayRecordDataSource | None] = [None] * self._metadata.shards
        self._locks = [threading.Lock() for _ in self._opened]

    def read(self, index: int) -> bytes:
        """The bytes of record `index` of the cache."""
        shard, position = divmod(index, self._metadata.shard_size)
        records = self._opened[shard]
        if records is None:
            with self._locks[shard]:
                records = self._opened[shard] = self._opened[shard] or self._open(shard)
        return records[position]

    def _open(self, shard: int) -> "ArrayRecordDataSource":
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        file = self._folder / self._metadata.shard_name(shard)
        count = len(self._metadata.shard_records(shard))
        try:
            return ArrayRecordDataSource([_Shard(os.fspath(local_copy(file)), count, count)])
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); look whether it is there") from error

    def __getstate__(self) -> tuple[epath.Path, CacheMetadata]:
        return self._folder, self._metadata

    def __setstate__(self, state: tuple[epath.Path, CacheMetadata]) -> None:
        self._folder, self._metadata = state
        self._forget()


class LatentCache:
    """The records of a finished cache.

    Args:
      path: its folder, on a disk or in a bucket; `~` is expanded.
      settings: `image_settings` of the config that trains from it.
      mirrored: hand out the moments of mirror images too.

    Raises:
      UserError: no such cache, an unfinished or incomplete one, or one of other images.

    Attributes:
      encoder: fingerprint of the autoencoder that made it.
      metadata: all that is known of it.
      num_classes: see `Source`, as are `class_names` and `identity`.
      image_shape: (H, W, C) of the images that were encoded.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], mirrored: bool):
        self._name = f"cache:{path}"
        folder = absolute(user_path(path))
        metadata = CacheMetadata.read(folder)
        if metadata is None:
            raise UserError(f"data.name={self._name}: no {METADATA} there; diffusion-jax encode writes caches")
        if metadata.statistics is None:
            raise UserError(f"data.name={self._name}: unfinished; run the diffusion-jax encode that began it again")
        for key, value in settings.items():
            if value != metadata.settings[key]:
                raise UserError(
                    f"data.{key}={value!r}: {self._name} holds latents of images with data.{key}="
                    f"{metadata.settings[key]!r}; set that, or encode again"
                )
        sizes = list_files(folder)
        for shard, size in enumerate(metadata.shard_bytes):
            name = metadata.shard_name(shard)
            if sizes.get(name) != size:
                problem = f"has {sizes[name]} bytes, not {size}" if name in sizes else "is missing"
                raise UserError(f"{folder / name} {problem}: copy it again, or run the same diffusion-jax encode again")
        self._shards = _Shards(folder, metadata)
        self._dtype = metadata.record_dtype
        self.record_spec: RecordSpec = {**metadata.moment_spec(mirrored), **metadata.fields}
        self.metadata, self.encoder = metadata, metadata.encoder
        self.num_classes, self.class_names = metadata.num_classes, metadata.class_names
        self.image_shape = metadata.image_shape
        self.identity = f"cache encoder={metadata.encoder} dtype={metadata.dtype} of {metadata.images}"

    def __len__(self) -> int:
        return self.metadata.records

    def __getitem__(self, index: int) -> Record:
        """Record `index`, 0 ≤ index < len(self).

        Returns:
          `mean` and, unless the first stage has none, `std`, [h, w, c] of the cache's dtype; if `mirrored`, also
          `mirrored_mean` and `mirrored_std`; `label`, int32 scalar, and whatever else the data set knows.

        Raises:
          UserError: it is damaged, or its label is none of the classes, which a model's table would not notice.
        """
        arrays, text = self._read(index)
        record = {**{name: arrays[name] for name in array_fields(self.record_spec)}, **text}
        if not 0 <= record["label"] < self.num_classes:
            raise UserError(
                f"record {index} of {self._name} has label {record['label']}, beyond the classes 0 to "
                f"{self.num_classes - 1}: encode again"
            )
        return record

    def read(self, index: int) -> np.void:
        """All of record `index` but its text, one element of `CacheMetadata.record_dtype`.

        Raises:
          UserError: it is damaged.
        """
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[np.void, dict[str, str]]:
        try:
            data = self._shards.read(index)
            if not self.metadata.text_fields:
                return np.frombuffer(data, self._dtype)[0], {}
            return np.frombuffer(data, self._dtype, 1)[0], json.loads(data[self._dtype.itemsize :])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"record {index} of {self._name} is damaged ({reason}): encode again") from error
