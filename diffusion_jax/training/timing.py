"""Where the time of a run goes: its steps apart from checkpoints, evaluation and everything between."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Timing:
    """Counts the seconds of a run, over all its restarts.

    Args:
      previous: the newest line of the log that the run goes on from; None for a new run.
    """

    def __init__(self, previous: Mapping[str, Any] | None):
        previous = previous or {}
        # What a kill destroyed and the pause after it are in the time since the run began, but not among its steps.
        self._begun = previous.get("time", time.time()) - previous.get("wall_seconds", 0.0)
        self._step_seconds = previous.get("step_seconds", 0.0)
        self._named: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._restart()

    def _restart(self) -> None:
        self._clock, self._aside = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Counts what is done inside as `name` and not as steps."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._named[name] += seconds
            self._aside += seconds

    def lap(self) -> float:
        """Seconds spent on steps since the last lap, those of `aside` left out."""
        seconds = time.perf_counter() - self._clock - self._aside
        self._restart()
        return seconds

    def startup(self) -> None:
        """Counts all seconds since the last lap as `startup`: the compilation and the first step."""
        self._named["startup"] += self.lap()

    def summary(self, step_seconds: float) -> dict[str, float]:
        """The scalars of a line of the log.

        Args:
          step_seconds: seconds since the last line in which the devices computed steps.

        Returns:
          `step_seconds`, their sum since the run began; `wall_seconds` since it began; `goodput`, their ratio; and of
          the seconds since the last line `startup_seconds`, `checkpoint_seconds` and whatever else was put `aside`.
        """
        self._step_seconds += step_seconds
        wall_seconds = time.time() - self._begun
        named = {f"{name}_seconds": self._named[name] for name in ("startup", "checkpoint", "evaluation")}
        self._named.clear()
        return {
            "step_seconds": self._step_seconds,
            "wall_seconds": wall_seconds,
            "goodput": self._step_seconds / max(wall_seconds, 1e-9),
            **named,
        }
