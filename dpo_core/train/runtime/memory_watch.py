"""Watch over host memory: a step that would drive the machine into swapping is broken off instead."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from dpo_core.errors import OutOfMemoryError, is_out_of_memory
from dpo_core.system import host_memory

EVERY_S = 0.5
# Less than this share of memory left, within these bounds, is short of memory.
FLOOR_SHARE, FLOOR_LEAST, FLOOR_MOST = 0.02, 128 * 2**20, 2**30
# So is a machine that has swapped this much out since the watch began, with little left.
SWAPPED, LITTLE_SHARE = 2**30, 0.1


class MemoryShort(Exception):
    """Host memory was about to run out in a step, which was broken off and is not applied."""


class MemoryWatch:
    """Inside the block memory is looked at twice a second, where training is ``on`` a CPU.

    A step in :func:`interruptible` is broken off by MemoryShort, in the main thread, between two operations.
    """

    def __init__(self, on: bool, every: float = EVERY_S) -> None:
        self.on, self.every = on, every
        self.swapped = host_memory.swapped() if on else 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="memory watch", daemon=True)

    def __enter__(self) -> Self:
        if self.on:
            self.before = signal.signal(signal.SIGUSR2, interrupt)
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        if self.on:
            self.thread.join()
            signal.signal(signal.SIGUSR2, self.before)

    def watch(self) -> None:
        """Look until the block is over; ask the main thread to break off for as long as memory is short."""
        while not self.over.wait(self.every):
            if cause := shortage(self.swapped):
                Interruption.cause = cause
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)


def shortage(swapped_before: int) -> str:
    """What is wrong with the memory that is left, empty for nothing."""
    left, total = host_memory.available(), host_memory.total()
    if left < min(FLOOR_MOST, max(FLOOR_LEAST, FLOOR_SHARE * total)):
        return f"{left / 1e9:.2f} of {total / 1e9:.1f} GB of memory are left"
    grown = host_memory.swapped() - swapped_before
    if grown > SWAPPED and left < LITTLE_SHARE * total:
        return f"{grown / 1e9:.1f} GB were swapped out since training began, {left / 1e9:.1f} GB are left"
    return ""


class Interruption:
    """Whether the main thread is where it can be broken off, and why it was to be."""

    armed, cause = False, ""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises MemoryShort where a step may be broken off."""
    if Interruption.armed:
        Interruption.armed = False
        raise MemoryShort(Interruption.cause)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, nothing is lost that matters when it is broken off."""
    Interruption.armed = True
    try:
        yield
    finally:
        Interruption.armed = False


@contextmanager
def explain_microbatch_memory(token_budget: int, longest: int, more: str = "") -> Iterator[None]:
    """Raises OutOfMemoryError in place of any error for memory in microbatches, saying what to lower.

    ``longest``: tokens of the longest pair, which no budget makes shorter. ``more``: what else helps.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        budget = max(1, token_budget // 2, longest)
        helps = budget < token_budget
        instead = f"token_budget={budget}" if helps else f"max_length={max(1, longest // 3)}"
        shortage_error = OutOfMemoryError(
            f"Memory ran out with token_budget={token_budget}{interruption_cause(error)}.",
            "A microbatch must fit into memory with its activations.",
            f"The longest pair has {longest} tokens: set {instead}{more}; what was saved stands.",
        )
        shortage_error.smaller_budget_helps = helps
        raise shortage_error from error


@contextmanager
def explain_memory(what: str, rule: str, remedy: str) -> Iterator[None]:
    """Raises OutOfMemoryError in place of any error for memory inside, where a token budget is not what it takes."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"Memory ran out in {what}{interruption_cause(error)}.", rule, remedy) from error


def interruption_cause(error: Exception) -> str:
    """What broke a step off, in brackets; empty for an error of torch's, which says how much it wanted and no more."""
    return f" ({error})" if isinstance(error, MemoryShort) else ""
