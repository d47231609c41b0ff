"""Garbage collection tuning: no collection while large libraries are imported, nor at exit, where it frees nothing.

It takes a fifth of a stage's import time, and most of the time that its process takes to exit (LAB.md, 2026-11-27).
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """For imports: no collection inside; all objects that exist at the end are frozen, so never searched again."""
    atexit.register(thaw)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def skip_at_exit() -> None:
    """Skip the final collection when this process exits; other functions registered with atexit still run."""
    atexit.register(freeze)


def freeze() -> None:
    """Freeze all objects, unless Triton is loaded."""
    if "triton" not in sys.modules:
        gc.freeze()


def thaw() -> None:
    """Unfreeze all objects if Triton is loaded: at exit it reports uncollected objects as leaks on standard error."""
    if "triton" in sys.modules:
        gc.unfreeze()
