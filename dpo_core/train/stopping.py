"""Being asked to stop: SIGTERM or Ctrl-C set a flag that the loop's caller reads between steps."""

import os
import signal
from types import FrameType


class StopFlag:
    """True once a signal has come; a second signal ends the process at once, without touching what is saved."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
