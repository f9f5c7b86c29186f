"""Turning SIGTERM and SIGINT into a request that the training loop honours between steps."""

import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT is noted instead of obeyed; a second SIGINT interrupts at once.

    Attributes:
      signal_name: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
