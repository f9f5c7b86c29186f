"""Reads that go on after one of them has failed, and what they say of it."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator

# Reads that are under way when one fails end within this time of each other, seconds.
QUIET = 0.3
LONGEST = 10.0


@contextlib.contextmanager
def late_errors_dropped() -> Iterator[list[str]]:
    """Lets nothing be heard of reads that outlive the one that failed.

    Orbax reads arrays together. When one cannot be read it closes its event loop, and TensorStore then prints for each
    of the others, as it ends, that the loop is closed: lines that say nothing of the checkpoint.

    Yields:
      A list; a reason put into it says that a read has failed, and the block then ends when the others have.
    """
    heard = time.monotonic()
    before = sys.unraisablehook

    def drop(unraisable: "sys.UnraisableHookArgs") -> None:
        nonlocal heard
        if isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value):
            heard = time.monotonic()
        else:
            before(unraisable)

    failed: list[str] = []
    sys.unraisablehook = drop
    try:
        yield failed
        if failed:
            gc.collect()  # what waits for the other reads is kept alive by the traceback of the failure
            heard, start = time.monotonic(), time.monotonic()
            while time.monotonic() - heard < QUIET and time.monotonic() - start < LONGEST:
                time.sleep(0.02)
    finally:
        sys.unraisablehook = before
