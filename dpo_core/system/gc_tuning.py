"""The garbage collector, kept from looking through what large libraries bring: it finds nothing, and takes seconds.

Measured in LAB.md (2026-11-27): a fifth of a stage's import time, and most of the time that its process takes to end.
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import inside without collecting; what was imported stays for good, and is not looked through again."""
    atexit.register(thaw)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def none_at_the_end() -> None:
    """Let this process end without a search through its modules; what was registered for its end still runs."""
    atexit.register(freeze)


def freeze() -> None:
    """Nothing is searched, unless Triton is loaded."""
    if "triton" not in sys.modules:
        gc.freeze()


def thaw() -> None:
    """Everything is searched after all where Triton is loaded: it reports what was not as leaked, on standard error."""
    if "triton" in sys.modules:
        gc.unfreeze()
