"""Batches put on the devices before the steps that take them, and how long those steps waited for them."""

import collections
import math
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from diffusion_jax.data.loader import Batch
from diffusion_jax.parallel.hardware import usable_cores

# Batches on the devices beside those of the steps in flight: one is taken while the next is being copied.
PLACED_AHEAD = 2

# A run is told that its input is slow when steps wait for more than this share of a stretch of this many seconds.
WAITING_SHARE = 0.05
JUDGED_SECONDS = 10.0


class Feed:
    """Takes batches from a reader and keeps the next ones on the devices, in the order of the reader.

    One thread reads and places: only so can the caller tell a step that waits for its input from one whose input is
    late while the devices still compute. Waiting is counted from the moment the devices have nothing left to do.

    Args:
      reader: what `batches` returned; `close` closes it.
      place: puts a batch, of arrays only, onto the devices.
      num_threads: what the reader was given, for the warning.
      num_workers: what the reader was given, for the warning.
    """

    def __init__(
        self,
        reader: Generator[Batch, None, None],
        place: Callable[[Batch], Any],
        num_threads: int,
        num_workers: int,
    ):
        self._reader, self._place = reader, place
        self._num_threads, self._num_workers = num_threads, num_workers
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming = collections.deque(self._pool.submit(self._fetch) for _ in range(PLACED_AHEAD))
        self._bad_images = 0
        self._judged: collections.Counter[str] = collections.Counter()
        self._warned = False
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured since the last `summary`, such as the wait for the very first batch."""
        self._waited = self._read_seconds = 0.0
        self._images = 0

    def take(self, finish: Callable[[], Any]) -> Any:
        """The next batch, placed.

        Args:
          finish: returns when the devices have nothing left to do; called only if the batch is not there yet.

        Raises:
          UserError: whatever the source raises.
        """
        coming = self._coming.popleft()
        if not coming.done():
            finish()
            clock = time.perf_counter()
            coming.exception()  # waits
            self._waited += time.perf_counter() - clock
        placed, images, read_seconds, bad_images = coming.result()
        self._coming.append(self._pool.submit(self._fetch))
        self._images += images
        self._read_seconds += read_seconds
        self._bad_images += bad_images
        return placed

    def summary(self, steps: int, seconds: float) -> dict[str, float]:
        """What the steps since the last summary say of the input; warns, once, if they waited too long.

        Args:
          steps: their number.
          seconds: the time they took.

        Returns:
          `input_seconds_per_step`: seconds for which the devices stood idle for want of a batch;
          `input_images_per_second_per_core`: images that one core reads, decodes and transforms; `bad_images`: images
          replaced since the start. The first two are of this process.
        """
        scalars = {"input_seconds_per_step": self._waited / steps, "bad_images": self._bad_images}
        if self._read_seconds:
            scalars["input_images_per_second_per_core"] = self._images / self._read_seconds
        self._judged.update(
            {"waited": self._waited, "seconds": seconds, "images": self._images, "read": self._read_seconds}
        )
        if self._judged["seconds"] >= JUDGED_SECONDS:
            if not self._warned and self._judged["waited"] > WAITING_SHARE * self._judged["seconds"]:
                print(slow_input(**self._judged, threads=self._num_threads, workers=self._num_workers), file=sys.stderr)
                self._warned = True
            self._judged.clear()
        self.restart()
        return scalars

    def close(self) -> None:
        """Ends the thread and the reader."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _fetch(self) -> tuple[Any, int, float, int]:
        batch = next(self._reader)
        read_seconds, bad_images = batch.pop("read_seconds"), batch.pop("bad_images")
        images = len(next(iter(batch.values())))
        return self._place(batch), images, read_seconds, bad_images


def slow_input(
    *, waited: float, seconds: float, images: int, read: float, threads: int, workers: int, cores: int | None = None
) -> str:
    """The warning that steps wait for their input, with the remedy.

    Args:
      waited: seconds for which the devices stood idle.
      seconds: seconds in all, > waited.
      images: images read in that time.
      read: core seconds spent on reading them.
      threads: `data.num_threads`.
      workers: `data.num_workers`.
      cores: cores of this host; None counts those that this process may use.

    Returns:
      One line.
    """
    if cores is None:
        cores = usable_cores()
    wanted = images / max(seconds - waited, 1e-9)
    needed = math.ceil(wanted * read / images)
    if needed > cores:
        remedy = (
            "encode the images once (diffusion-jax encode), store them at the training size, or spread the run over "
            "more hosts"
        )
    elif not workers and threads < needed:
        remedy = f"set data.num_threads={needed} (now {threads})"
    else:
        remedy = f"set data.num_workers={max(needed, workers + 1)} (now {workers}): threads alone share one interpreter"
    return (
        f"input: steps wait {waited / seconds:.0%} of their time for images. They could take {wanted:,.0f} images/s "
        f"and get {images / seconds:,.0f}; a core reads {images / read:,.0f}, so about {needed} of this host's {cores} "
        f"cores are needed: {remedy}"
    )
