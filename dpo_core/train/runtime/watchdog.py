"""A step that never ends: its stack is shown, and the process is ended so that the run can be tried again."""

import faulthandler
import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Self


class Watchdog:
    """Inside the block :meth:`alive` must be called every so many minutes (0: never looked at).

    The watching thread runs while a step waits in a kernel or a collective. The process ends by SIGABRT.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.last = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self.seconds:
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()

    def alive(self) -> None:
        """The step has ended."""
        self.last = time.monotonic()

    def watch(self) -> None:
        """Wait until the block is over or a step has taken too long."""
        while not self.over.wait(max(0.05, self.last + self.seconds - time.monotonic())):
            if time.monotonic() - self.last >= self.seconds:
                self.end()

    def end(self) -> None:
        """Show what every thread is doing, and leave."""
        print(f"A step has taken more than {self.seconds / 60:g} minutes (step_timeout_minutes):", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGABRT)
