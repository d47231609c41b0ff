"""JSONL reader (optionally .gz): one line in memory at a time; errors name the line number."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo_core.data.row_outcome import Convert, Outcome, Row, with_source
from dpo_core.errors import DataError
from dpo_core.system.progress import Progress

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
# Lines between two updates of the progress display.
LINES_PER_PROGRESS = 256
RULE = "A dataset file has one JSON object per line."


def read(path: Path, convert: Convert) -> Iterator[Outcome]:
    """Convert every line.

    Raises DataError for a missing, empty or cut-off file, or a line that is not a JSON object: a broken file must be
    fixed, while a row that breaks the schema is only counted.
    """
    count = 0
    for number, row in json_lines(path):
        count += 1
        yield with_source(convert(row, f"{path.name}:{number}"), row)
    if not count:
        raise DataError(f"{path} is empty.", RULE, "Check the file.")


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers (from 1) and objects; blank lines are skipped."""
    if not path.is_file():
        raise DataError(f"There is no dataset file {path}.", RULE, "Check the path.")
    number = 0
    try:
        progress = Progress(f"reading {path.name}", path.stat().st_size / 1e3, "kB")
        with open_bytes(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, json_object(path, number, line)
                if number % LINES_PER_PROGRESS == 0:
                    progress.advance(bytes_read(stream) / 1e3 - progress.done)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is cut off: after line {number}, {str(error).rstrip('.')}.", RULE, "Copy the file again."
        ) from None


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked when its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def bytes_read(stream: IO[bytes]) -> int:
    """Bytes of the file that have been read, before decompression."""
    raw: IO[bytes] = getattr(stream, "fileobj", None) or stream
    return raw.tell()


def json_object(path: Path, number: int, line: bytes) -> Row:
    """One line as a JSON object.

    Raises DataError with the line number when it is not one.
    """
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}.", RULE, "Fix that line.") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number} is a {type(row).__name__}.", RULE, "Fix that line.")
    return row
