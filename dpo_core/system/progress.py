"""Progress of work that takes long: a plain line now and then, with an estimate of the time left.

The lines go to standard error, terminal or not: what a command answers, on standard output, stays clean. A stage's
process inherits both from whoever started it.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

# Nothing is said of what is done sooner; after that, at most a line each EVERY_S seconds.
QUIET_S, EVERY_S = 5.0, 10.0


class Progress:
    """How many ``unit`` of ``total`` are done: ``scoring the reference: 64 of 195 pairs, 1 m 20 s left``.

    total: None where nobody knows it; then there is no estimate. done: what was done before, which takes no time now.
    """

    def __init__(self, title: str, total: float | None, unit: str, done: float = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.before = done, done
        self.start()

    def start(self) -> None:
        """The work begins now."""
        self.started = self.moved = now()
        self.due = self.started + QUIET_S

    def advance(self, count: float = 1, note: str = "") -> None:
        """``count`` more are done; ``note`` is a fact for the line, if one is due. A last line comes with the last."""
        self.reach(self.done + count)
        if self.total is not None and self.done >= self.total > self.done - count:
            self.end()
        else:
            self.tell(self.moved, note=note)

    def one(self, *_: object) -> None:
        """One more is done, whatever it is."""
        self.advance()

    def reach(self, done: float) -> None:
        """So many are done now; nothing is said."""
        self.done, self.moved = done, now()

    def beat(self, partial: float = 0.0) -> None:
        """Say a line if one is due; ``partial``: units' worth of what is begun and not done."""
        self.tell(now(), partial)

    def tell(self, moment: float, partial: float = 0.0, note: str = "") -> None:
        """Say a line if one is due at this moment."""
        if moment < self.due or self.done == self.total:
            return
        self.due = moment + EVERY_S
        say(", ".join(part for part in (self.count(), note, self.outlook(moment, partial)) if part))

    def end(self) -> None:
        """All is done: say how long it took, if that was worth a line."""
        took = self.moved - self.started
        if took >= QUIET_S:
            say(f"{self.title}: {amount(self.done)} {self.unit} in {duration(took)}")

    def count(self) -> str:
        """How many are done of how many."""
        of = "" if self.total is None else f" of {amount(self.total)}"
        return f"{self.title}: {amount(self.done)}{of} {self.unit}"

    def outlook(self, moment: float, partial: float = 0.0) -> str:
        """The time left at the speed so far, or, where there is none to go by, the time gone.

        What is begun is not seen unless it is told as ``partial``: the speed is that of when the last unit was done.
        """
        units, until = self.done + partial - self.before, moment if partial else self.moved
        if self.total is not None and units > 0:
            left = (self.total - self.done - partial) / units * (until - self.started) - (moment - until)
            if left >= 0:
                return f"{duration(left)} left"
        return f"{duration(moment - self.started)} so far"

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each is done when the next one is asked for, and the work begins with the very first."""
        if self.done == self.before:
            self.start()
        for item in items:
            yield item
            self.advance()


@contextmanager
def ticking(title: str) -> Iterator[None]:
    """Inside, or in the function that it decorates, a line now and then about work that cannot be counted."""
    started = now()
    with repeating(lambda: say(f"{title}: {duration(now() - started)} so far")):
        yield


@contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Inside, a thread calls ``action`` after QUIET_S seconds and then each EVERY_S."""
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
    """Seconds of a clock that nobody sets."""
    return time.monotonic()


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)


def amount(value: float) -> str:
    """A number of units, rounded down."""
    return f"{int(value):,}"


def duration(seconds: float) -> str:
    """``45 s``, ``1 m 20 s``, ``2 h 5 m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"
