"""Writing a cache of latents: every image of a source and its mirror image through the encoder, once.

A shard appears under its name when it is whole, and holds records that follow from its number.
So whatever interrupts the writing, the same call finishes it: what is there under its final name is right, and what is
not there is made. Process p of P writes the shards p, p + P, …, each batch spread over the process's own devices.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusion_jax.autoencoding.fingerprint import encoder_fingerprint
from diffusion_jax.autoencoding.latent_statistics import LatentStatistics
from diffusion_jax.data import Batch, BatchContents, DataConfig, Source, all_records
from diffusion_jax.data.latents import MIRRORED, CacheMetadata, image_settings
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import in_bucket, list_files, make_folder, open_atomically, write_atomically
from diffusion_jax.models.autoencoder.first_stage import (
    PUBLISHED_SCALES,
    Identity,
    KLConfig,
    KLFirstStage,
    VQConfig,
    VQFirstStage,
)
from diffusion_jax.parallel import processes
from diffusion_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from diffusion_jax.pictures import from_uint8
from diffusion_jax.records import Field, Record, RecordSpec, array_fields

CacheDType = Literal["float32", "float16", "bfloat16"]

# Each record by itself, so that reading one at random reads nothing else; latents hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"

# Reading the statistics of many shards waits for the file system, in a bucket for long.
READING_THREADS = 16


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """How a cache is written.

    Attributes:
      dtype: of the stored moments; float32 makes training from the cache equal to encoding on the fly.
      batch_size: images that each device encodes at once.
      shard_size: images in a shard, which is also what an interruption costs at most.
    """

    dtype: CacheDType = "float32"
    batch_size: int = 32
    shard_size: int = 1000

    def __post_init__(self):
        if self.dtype not in get_args(CacheDType):
            raise UserError(f"--dtype {self.dtype}: is not known{did_you_mean(self.dtype, get_args(CacheDType))}")
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")


def with_any_scale(config: Identity | KLConfig | VQConfig) -> KLConfig | VQConfig:
    """A first stage that can be built before its latent statistics, which a cache does not depend on, are known.

    Raises:
      UserError: it makes no latents.
    """
    if isinstance(config, Identity):
        raise UserError("autoencoder 'identity' makes no latents to keep: name a 'kl' or 'vq' autoencoder")
    config = dataclasses.replace(config, normalize="scale", channel_mean=None, channel_std=None)
    if isinstance(config, KLConfig) and config.scale is None and config.preset not in PUBLISHED_SCALES:
        return dataclasses.replace(config, scale=1.0)
    return config


def write_cache(
    folder: epath.Path,
    source: Source,
    data: DataConfig,
    first_stage: KLFirstStage | VQFirstStage,
    autoencoder: str,
    config: EncodeConfig,
) -> CacheMetadata:
    """Writes the latents of all images of a source, or those that an interrupted call left out.

    Args:
      folder: where to; made if missing.
      source: the images.
      data: the config that `source` was opened with.
      first_stage: what encodes them.
      autoencoder: what to call it.
      config: how.

    Returns:
      The metadata of the finished cache.

    Raises:
      UserError: the folder holds another cache; an image cannot be read; latents that are not finite.
    """
    height, width, channels = source.image_shape
    latent_shape = first_stage.latent_shape((height, width), channels)
    images = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.float32)
    moments = jax.eval_shape(lambda stage, images: stage.posterior(images), first_stage, images)
    metadata = CacheMetadata(
        images=source.identity,
        settings=image_settings(data),
        num_classes=source.num_classes,
        class_names=tuple(source.class_names),
        image_shape=source.image_shape,
        autoencoder=autoencoder,
        encoder=encoder_fingerprint(first_stage, height),
        moments=tuple(moments),
        latent_shape=latent_shape,
        dtype=config.dtype,
        records=len(source),
        shard_size=config.shard_size,
        fields={name: field for name, field in source.record_spec.items() if name != "image"},
    )
    stored = CacheMetadata.read(folder)
    if stored is not None:
        check_same_cache(metadata, stored, folder)
    elif processes.is_main():
        metadata.write(folder)
    make_folder(folder)

    sizes = stored.shard_bytes if stored else ()
    mine = range(jax.process_index(), metadata.shards, jax.process_count())
    found = list_files(folder)
    missing = [shard for shard in mine if not _is_whole(found, metadata, shard, sizes)]
    if missing:
        _write_shards(folder, metadata, source, data, first_stage, config.batch_size, missing)
    processes.wait_for_all("cache written")
    finished = _finish(folder, metadata)
    if processes.is_main() and finished != stored:
        finished.write(folder)
    return finished


def check_same_cache(metadata: CacheMetadata, stored: CacheMetadata, folder: epath.Path) -> None:
    """Raises a `UserError` that names the first difference, unless `stored` is what `metadata` describes."""
    free = ("autoencoder", "shard_bytes", "statistics")  # a name, and what is known only at the end
    for field in dataclasses.fields(CacheMetadata):
        before, now = getattr(stored, field.name), getattr(metadata, field.name)
        if field.name not in free and before != now:
            raise UserError(f"{folder} holds a cache with {field.name}={before!r}, not {now!r}: use another --out")


def _is_whole(found: Mapping[str, int], metadata: CacheMetadata, shard: int, sizes: Sequence[int]) -> bool:
    name = metadata.shard_name(shard)
    return name in found and _statistics_name(name) in found and (not sizes or found[name] == sizes[shard])


def _statistics_name(shard_name: str) -> str:
    return f"{shard_name.removesuffix('.array_record')}.json"


def _write_shards(
    folder: epath.Path,
    metadata: CacheMetadata,
    source: Source,
    data: DataConfig,
    first_stage: Any,
    batch_size: int,
    shards: Sequence[int],
) -> None:
    """Encodes and writes some shards, batches running on from each into the next."""
    numbers = np.concatenate([np.arange(len(source))[metadata.shard_records(shard)] for shard in shards])
    chosen = _Chosen(source, numbers)
    batch_size *= jax.local_device_count()
    batches = all_records(
        chosen,
        batch_size,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        prefetch=data.prefetch,
        contents=BatchContents(tuple(chosen.record_spec)),
    )
    encoded = _encode(first_stage, batches, batch_size, metadata)
    waiting, waiting_text = np.empty(0, metadata.record_dtype), list[bytes]()
    clock = time.perf_counter()
    for shard in shards:
        count = len(metadata.shard_records(shard))
        while len(waiting) < count:
            records, text = next(encoded)
            waiting, waiting_text = np.concatenate([waiting, records]), waiting_text + text
        _write_shard(folder, metadata, shard, waiting[:count], waiting_text[:count])
        waiting, waiting_text = waiting[count:], waiting_text[count:]
        now = time.perf_counter()
        speed, clock = count / (now - clock), now
        print(f"shard {shard + 1} of {metadata.shards}: {count:,} images, {speed:.1f} images/s", file=sys.stderr)


class _Chosen:
    """Some records of a source, each with the number `source_id` of the image that it holds."""

    def __init__(self, source: Source, numbers: np.ndarray):
        self._source, self._numbers = source, numbers
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.image_shape, self.identity = source.image_shape, source.identity
        self.record_spec: RecordSpec = {**source.record_spec, "source_id": Field((), "int64")}

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        number = int(self._numbers[index])
        record = self._source[number]
        source_id = (number + record.get("bad_images", 0)) % len(self._source)
        return {**{name: record[name] for name in self._source.record_spec}, "source_id": np.int64(source_id)}


def _encode(
    first_stage: Any, batches: Iterator[Batch], batch_size: int, metadata: CacheMetadata
) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """Yields the records [B] of each batch and their text, encoding one batch while the one before is written."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    first_stage = jax.device_put(first_stage, replicated(mesh))
    encode = jax.jit(functools.partial(_moments, dtype=jnp.dtype(metadata.dtype)))
    before: tuple[Batch, dict[str, jax.Array]] | None = None
    for batch in batches:
        images = batch.pop("image")
        # One shape, hence one compilation: the last batch is filled up and the rest dropped.
        padding = [(0, batch_size - len(images)), *[(0, 0)] * 3]
        moments = encode(first_stage, jax.device_put(np.pad(images, padding), batch_sharding(mesh)))
        if before is not None:
            yield _records(*before, metadata)
        before = (batch, moments)
    if before is not None:
        yield _records(*before, metadata)


def _moments(first_stage: Any, images: jax.Array, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """The posteriors of images [B, H, W, C] uint8 and of their mirror images, each moment [B, h, w, c]."""
    scaled = from_uint8(images)
    plain, mirrored = first_stage.posterior(scaled), first_stage.posterior(scaled[:, :, ::-1])
    moments = {**plain, **{MIRRORED + name: value for name, value in mirrored.items()}}
    return {name: value.astype(dtype) for name, value in moments.items()}


def _records(batch: Batch, moments: dict[str, jax.Array], metadata: CacheMetadata) -> tuple[np.ndarray, list[bytes]]:
    """Joins the moments of a batch, fetched from the devices, with what else is known: [B] records, and their text."""
    records = np.empty(len(batch["source_id"]), metadata.record_dtype)
    for name in ("source_id", *array_fields(metadata.fields)):
        records[name] = batch[name]
    for name, values in moments.items():
        records[name] = np.asarray(values)[: len(records)]
        finite = np.isfinite(records[name].astype(np.float32)).all((1, 2, 3))
        if not finite.all():
            number = records["source_id"][~finite][0]
            raise UserError(f"image {number}: its latents are not finite in {metadata.dtype}: use --dtype float32")
    names = metadata.text_fields
    text = [
        json.dumps({name: batch[name][i] for name in names}).encode() if names else b"" for i in range(len(records))
    ]
    return records, text


def _write_shard(
    folder: epath.Path, metadata: CacheMetadata, shard: int, records: np.ndarray, text: Sequence[bytes]
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    name = metadata.shard_name(shard)
    if not in_bucket(folder):
        for abandoned in folder.glob(f"{name}.*.partial"):
            abandoned.unlink()
    with open_atomically(folder / name) as file:
        writer = ArrayRecordWriter(file.name, WRITER_OPTIONS)
        for record, behind in zip(records, text, strict=True):
            writer.write(record.tobytes() + behind)
        writer.close()
        os.fsync(file.fileno())
        statistics = json.dumps(_statistics(records, metadata).to_json())
        write_atomically(folder / _statistics_name(name), statistics.encode())


def _statistics(records: np.ndarray, metadata: CacheMetadata) -> LatentStatistics:
    """Mean and variance, per channel, of latents drawn from the posteriors of images and mirror images."""
    axes = (0, 1, 2)
    parts = []
    for prefix in ("", MIRRORED):
        mean = records[prefix + "mean"].astype(np.float64)  # [N, h, w, c]
        noise = np.square(records[prefix + "std"].astype(np.float64)).mean(axes) if "std" in metadata.moments else 0
        parts.append(LatentStatistics(mean[..., 0].size, mean.mean(axes), mean.var(axes) + noise))
    return parts[0].merge(parts[1])


def _finish(folder: epath.Path, metadata: CacheMetadata) -> CacheMetadata:
    """The metadata with what all shards together tell."""
    names, sizes = [metadata.shard_name(shard) for shard in range(metadata.shards)], list_files(folder)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        texts = pool.map(lambda name: (folder / _statistics_name(name)).read_text(), names)
        parts = [LatentStatistics.from_json(json.loads(text)) for text in texts]
    return dataclasses.replace(
        metadata,
        shard_bytes=tuple(sizes[name] for name in names),
        statistics=functools.reduce(LatentStatistics.merge, parts).to_json(),
    )
