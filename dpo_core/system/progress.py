"""Progress lines of long work: a plain line every few seconds, with an estimate of the time left.

The lines go to standard error, on a terminal or not, so that standard output holds a command's results only. A stage's
process inherits both from its parent.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

# Work of less than QUIET_S seconds prints no line; longer work prints at most a line every EVERY_S seconds.
QUIET_S, EVERY_S = 5.0, 10.0


class Progress:
    """Units done of a total: ``scoring the reference: 64 of 195 pairs, 1 m 20 s left``.

    ``total``: None if unknown; then there is no estimate. ``done``: units done before, which do not count as speed.
    """

    def __init__(self, title: str, total: float | None, unit: str, done: float = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.before = done, done
        self.start()

    def start(self) -> None:
        """Restart the clock: the work begins now."""
        self.started = self.moved = now()
        self.due = self.started + QUIET_S

    def advance(self, count: float = 1, note: str = "") -> None:
        """Count ``count`` more units as done; print a line with ``note`` if one is due, and a last one at the total."""
        self.reach(self.done + count)
        if self.total is not None and self.done >= self.total > self.done - count:
            self.end()
        else:
            self.print_if_due(self.moved, note=note)

    def advance_one(self, *_: object) -> None:
        """Count one more unit as done; a callback that ignores its arguments."""
        self.advance()

    def reach(self, done: float) -> None:
        """Set the number of units done, without a line."""
        self.done, self.moved = done, now()

    def beat(self, partial: float = 0.0) -> None:
        """Print a line if one is due; ``partial``: unfinished work in units."""
        self.print_if_due(now(), partial)

    def print_if_due(self, moment: float, partial: float = 0.0, note: str = "") -> None:
        """Print a line if one is due at ``moment``, in seconds of :func:`now`."""
        if moment < self.due or self.done == self.total:
            return
        self.due = moment + EVERY_S
        say(", ".join(part for part in (self.count(), note, self.outlook(moment, partial)) if part))

    def end(self) -> None:
        """Print the time that all units took, unless it was less than QUIET_S."""
        elapsed = self.moved - self.started
        if elapsed >= QUIET_S:
            say(f"{self.title}: {format_count(self.done)} {self.unit} in {format_duration(elapsed)}")

    def count(self) -> str:
        """``scoring: 64 of 195 pairs``."""
        total = "" if self.total is None else f" of {format_count(self.total)}"
        return f"{self.title}: {format_count(self.done)}{total} {self.unit}"

    def outlook(self, moment: float, partial: float = 0.0) -> str:
        """The time left at the speed so far; the elapsed time if there is no speed yet, or no total.

        Unfinished work counts only through ``partial``: without it, the speed is that up to the last finished unit.
        """
        units, until = self.done + partial - self.before, moment if partial else self.moved
        if self.total is not None and units > 0:
            left = (self.total - self.done - partial) / units * (until - self.started) - (moment - until)
            if left >= 0:
                return f"{format_duration(left)} left"
        return f"{format_duration(moment - self.started)} so far"

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; each is done when the next one is requested. The clock starts at the first request."""
        if self.done == self.before:
            self.start()
        for item in items:
            yield item
            self.advance()


@contextmanager
def ticking(title: str) -> Iterator[None]:
    """Print lines with the elapsed time of work that has no units: inside, or in the function that it decorates."""
    started = now()
    with repeating(lambda: say(f"{title}: {format_duration(now() - started)} so far")):
        yield


@contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Inside, a thread calls ``action`` after QUIET_S seconds and then every EVERY_S seconds."""
    ended = Event()

    def repeat() -> None:
        pause = QUIET_S
        while not ended.wait(pause):
            action()
            pause = EVERY_S

    thread = Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def now() -> float:
    """Seconds of a monotonic clock."""
    return time.monotonic()


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def format_count(value: float) -> str:
    """A number of units, rounded down."""
    return f"{int(value):,}"


def format_duration(seconds: float) -> str:
    """``45 s``, ``1 m 20 s``, ``2 h 5 m``."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} m {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} m"
