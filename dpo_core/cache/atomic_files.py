"""Files that are whole whenever they exist, and locks that their holder's death releases."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def write_text(path: Path, text: str) -> None:
    """Write a file aside, make it durable, and give it its name."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    rename(aside, path)


def rename(aside: Path, path: Path) -> None:
    """Give a finished file or directory its name, so that a power cut cannot take the name back."""
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """A file's content, or a directory's names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def from_disk(error: Exception) -> OSError | None:
    """What the system said, where an error comes from the disk: safetensors has a kind of its own. None for others."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, and tell whether it had to be waited for; the kernel releases it however its holder ends.

    ``path``: a directory, or a file that is made and, at the end, removed. Raises BlockingIOError when another holds
    it and ``wait`` is false.
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
        os.close(descriptor)  # its holder removed it while we waited: the name is free, or another file by now


def named(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
