"""Being asked to stop: a signal or the end of the time allowed, which the loop's caller notices between steps."""

import os
import signal
import time
from types import FrameType


class StopFlag:
    """``asked`` is true once a signal has come or ``max_minutes`` are over.

    A second signal ends the process at once, without touching what is saved.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.signalled = False
        self.end = time.monotonic() + 60 * max_minutes if max_minutes else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            os._exit(128 + number)
        self.signalled = True

    @property
    def stop_requested(self) -> bool:
        """Whether to stop after this step."""
        return self.signalled or self.timed_out

    @property
    def timed_out(self) -> bool:
        """Whether the time allowed is over."""
        return self.end is not None and time.monotonic() >= self.end

    @property
    def why(self) -> str:
        """The cause, as the end of a sentence."""
        return "" if self.signalled else ", as max_minutes says"
