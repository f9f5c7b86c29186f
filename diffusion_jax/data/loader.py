"""Batches of a source, read ahead in parallel."""

import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from diffusion_jax.data.order import record_indices
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.records import Record, array_fields

Batch = dict[str, Any]

# Grain wants a length: more batches than any run reads, few enough for 64-bit arithmetic on positions.
ENDLESS_BATCHES = 2**32

MakeArrays = Callable[[Record, int, int], Mapping[str, np.ndarray]]
"""(record, seed, position) → arrays made of a record; `Conditioner.arrays` is one."""

Indices = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Step → positions of its rows in the order of reading, and the records there."""


@dataclasses.dataclass(frozen=True)
class BatchContents:
    """What a batch takes of every record.

    Attributes:
      fields: names of the fields that it takes as they are.
      make: what makes further arrays of the record; must be picklable where there are reading processes.
      seed: handed to `make`.
    """

    fields: tuple[str, ...]
    make: MakeArrays | None = None
    seed: int = 0

    def __call__(self, record: Record, position: int) -> dict[str, Any]:
        """The contents of the record at a position of the order in which records are read."""
        taken = {name: record[name] for name in self.fields}
        return taken if self.make is None else {**taken, **self.make(record, self.seed, position)}


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
    start_step: int = 0,
    num_threads: int = 8,
    num_workers: int = 0,
    prefetch: int = 2,
    contents: BatchContents | None = None,
) -> Generator[Batch, None, None]:
    """This process's part of the global batches of steps `start_step`, `start_step` + 1, … without end.

    Row r of the global batch of step s is the record at position s · batch_size + r of the order that `seed` gives
    (`order.record_indices`), whatever the number of processes, threads or workers.

    Args:
      source: where records come from.
      seed: the run's seed, 0 ≤ seed < 2³².
      batch_size: size of the global batch, ≥ 1.
      rows: the rows of the global batch to read here, ascending, within 0 … batch_size − 1; None reads all.
      start_step: the first step, ≥ 0.
      num_threads: reading threads (per worker if there are workers), ≥ 1.
      num_workers: reading processes, ≥ 0. They are spawned, so a script that asks for them needs the usual
        `if __name__ == "__main__"`.
      prefetch: number of batches read ahead, ≥ 1.
      contents: what batches take of a record; None takes every field of the source that is an array.

    Returns:
      A generator of `{"image": uint8 [R, H, W, C], "label": int32 [R], "bad_images": int, "read_seconds": float}` with
      R = len(rows), or whatever else `contents` takes, stacked; `read_seconds` is the processor time that reading,
      decoding and transforming took, summed over threads and processes. Reading starts with the first `next`; closing
      or dropping the generator ends its threads and processes.

    Raises:
      UserError: `rows` are not ascending rows of the batch; when iterated, whatever the source raises.
    """
    rows = tuple(range(batch_size) if rows is None else rows)
    ascending = all(a < b for a, b in itertools.pairwise(rows))
    if not rows or not ascending or rows[0] < 0 or rows[-1] >= batch_size:
        raise UserError(f"rows {rows} of the global batch: must be ascending and within 0 … {batch_size - 1}")
    indices = functools.partial(_shuffled_rows, seed, len(source), batch_size, rows, start_step)
    contents = contents or BatchContents(array_fields(source.record_spec))
    return _read(source, indices, len(rows), ENDLESS_BATCHES * len(rows), num_threads, num_workers, prefetch, contents)


def all_records(
    source: Source,
    batch_size: int,
    *,
    num_threads: int = 8,
    num_workers: int = 0,
    prefetch: int = 2,
    contents: BatchContents | None = None,
) -> Generator[Batch, None, None]:
    """Every record of a source once, in order, in batches of `batch_size` of which the last may be shorter.

    Arguments and elements are those of `batches`; text that `contents` names becomes lists of strings. Where a source
    skips bad images, their replacements occur twice.
    """
    indices = functools.partial(_consecutive_rows, len(source), batch_size)
    contents = contents or BatchContents(array_fields(source.record_spec))
    return _read(source, indices, batch_size, len(source), num_threads, num_workers, prefetch, contents)


@functools.lru_cache(maxsize=64)
def _shuffled_rows(
    seed: int, num_records: int, batch_size: int, rows: tuple[int, ...], start_step: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `Indices` of `rows` of batch `start_step + step`; cached because each piece of the batch asks for them."""
    positions = (start_step + step) * batch_size + np.asarray(rows, np.uint64)
    return positions, record_indices(seed, positions, num_records)


def _consecutive_rows(num_records: int, batch_size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(step * batch_size, min((step + 1) * batch_size, num_records))
    return positions, positions


def _read(
    source: Source,
    indices: Indices,
    batch_size: int,
    num_records: int,
    num_threads: int,
    num_workers: int,
    prefetch: int,
    contents: BatchContents,
) -> Generator[Batch, None, None]:
    """Yields `num_records` records in batches, that of step s being what `indices(s)` says.

    A batch is read in pieces, one per reading thread: Grain spends a quarter of a millisecond on each element that
    passes through it, too much for single small images and nothing for a piece.
    """
    piece = -(-batch_size // (num_threads * max(num_workers, 1)))
    pieces_per_batch = -(-batch_size // piece)
    full_batches, rest = divmod(num_records, batch_size)
    num_pieces = full_batches * pieces_per_batch + -(-rest // piece)
    pieces = grain.MapDataset.source(_Pieces(source, indices, piece, pieces_per_batch, num_pieces, contents))
    read_ahead = prefetch * pieces_per_batch
    if num_workers:
        # Grain's workers read absl flags, which a program that was not started by absl.app has not parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=-(-read_ahead // num_workers))
        dataset = pieces.to_iter_dataset(grain.ReadOptions(num_threads, num_threads)).mp_prefetch(
            options, _start_worker
        )
    else:
        dataset = pieces.to_iter_dataset(grain.ReadOptions(num_threads, read_ahead))
    iterator = iter(dataset)
    try:
        for first in range(0, num_pieces, pieces_per_batch):
            yield _concatenate([next(iterator) for _ in range(min(pieces_per_batch, num_pieces - first))])
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Ties a reading process to its parent: the parent alone answers signals, and its death, however sudden, ends both.

    A terminal or a job scheduler signals the whole process group; training then wants to finish its step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Pieces:
    """Pieces of batches as one long sequence with random access, the form in which Grain takes data."""

    def __init__(
        self,
        source: Source,
        indices: Indices,
        piece: int,
        pieces_per_batch: int,
        length: int,
        contents: BatchContents,
    ):
        self.source, self.indices, self.contents = source, indices, contents
        self.piece, self.pieces_per_batch, self.length = piece, pieces_per_batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        step, number = divmod(index, self.pieces_per_batch)
        rows = slice(number * self.piece, (number + 1) * self.piece)
        positions, chosen = (each[rows].tolist() for each in self.indices(step))
        clock = time.thread_time()
        records = [self.source[i] for i in chosen]
        batch = _stack([self.contents(*each) for each in zip(records, positions, strict=True)])
        batch["bad_images"] = sum(record.get("bad_images", 0) for record in records)
        return {**batch, "read_seconds": time.thread_time() - clock}


def _stack(contents: Sequence[Mapping[str, Any]]) -> Batch:
    """Joins arrays along a new leading axis, and text into lists."""

    def join(values: list[Any]) -> Any:
        return values if isinstance(values[0], str) else np.stack(values)

    return {key: join([each[key] for each in contents]) for key in contents[0]}


def _concatenate(pieces: Sequence[Batch]) -> Batch:
    """Joins pieces of a batch along their leading axis, and adds up what they count."""
    counts = {key: sum(piece[key] for piece in pieces) for key in ("bad_images", "read_seconds")}

    def join(values: list[Any]) -> Any:
        return list(itertools.chain(*values)) if isinstance(values[0], list) else np.concatenate(values)

    return {key: join([piece[key] for piece in pieces]) for key in pieces[0] if key not in counts} | counts
