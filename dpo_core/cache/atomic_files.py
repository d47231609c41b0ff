"""Atomic files, complete whenever they exist, and file locks, which the kernel releases when their process ends."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: under another name, flushed to the disk, then renamed."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    rename(aside, path)


def rename(aside: Path, path: Path) -> None:
    """Rename a finished file or directory durably: the new name survives a power cut."""
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error_in(error: Exception) -> OSError | None:
    """The OSError behind an error of the disk, also where safetensors wrapped it; None for other errors."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock; yields whether another process held it before. The kernel releases it when this process ends.

    ``path``: a directory, or a file that is created and, at the end, removed. Raises BlockingIOError when another
    process holds the lock and ``wait`` is false.
    """
    descriptor, waited = acquire(path, wait)
    try:
        yield waited
    finally:
        if not path.is_dir():
            path.unlink(missing_ok=True)
        os.close(descriptor)


def acquire(path: Path, wait: bool) -> tuple[int, bool]:
    """An open, locked descriptor of ``path``, and whether it took waiting."""
    waited = False
    while True:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                raise
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if named(path, descriptor):
            return descriptor, waited
        os.close(descriptor)  # the holder removed the file during the wait: the name is free, or names another file


def named(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
