"""Content addresses: the same content has the same name on every machine and in every process."""

import hashlib
import json
from pathlib import Path
from typing import Any

LENGTH = 16
CHUNK = 2**20


def of_value(value: Any) -> str:
    """Fingerprint of a JSON-serialisable value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_file(path: Path) -> str:
    """Full SHA-256 of a file's bytes.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_beginning(path: Path, length: int) -> str:
    """SHA-256 of the first ``length`` bytes; of nothing, for a file that is missing or shorter."""
    held = hashlib.sha256()
    if length and path.is_file() and path.stat().st_size >= length:
        with path.open("rb") as stream:
            while length and (part := stream.read(min(length, CHUNK))):
                held.update(part)
                length -= len(part)
    return held.hexdigest()


def of_files(paths: list[Path], root: Path) -> str:
    """Fingerprint of some files below ``root``, by relative name and content."""
    return of_value({path.relative_to(root).as_posix(): of_file(path) for path in paths})
