"""The lines of a JSONL file (optionally .gz), one in memory at a time; what is not JSON is named by its number."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo_core.data.row_outcome import Convert, Outcome, Row, sourced
from dpo_core.errors import DataError
from dpo_core.system.progress import Progress

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
# So many lines are read before the place in the file is looked at.
LINES_A_LOOK = 256
RULE = "A dataset file holds one JSON object a line."


def read(path: Path, convert: Convert) -> Iterator[Outcome]:
    """Every line as a pair, or as the reason why it is none.

    Raises DataError for a missing, empty or cut-off file, or a line that is not a JSON object: a broken file is to be
    mended, where a row that breaks the schema is counted.
    """
    count = 0
    for number, row in json_lines(path):
        count += 1
        yield sourced(convert(row, f"{path.name}:{number}"), row)
    if not count:
        raise DataError(f"{path} is empty.", RULE, "Check the file.")


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers (from 1) and objects; blank lines are passed over."""
    if not path.is_file():
        raise DataError(f"There is no dataset file {path}.", RULE, "Check the path.")
    number = 0
    try:
        progress = Progress(f"reading {path.name}", path.stat().st_size / 1e3, "kB")
        with opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, json_object(path, number, line)
                if number % LINES_A_LOOK == 0:
                    progress.advance(place(stream) / 1e3 - progress.done)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is not whole: after line {number}, {str(error).rstrip('.')}.", RULE, "Copy the file again."
        ) from None


def opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked when its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def place(stream: IO[bytes]) -> int:
    """How many bytes of the file have been read, packed ones where it is packed."""
    packed: IO[bytes] = getattr(stream, "fileobj", None) or stream
    return packed.tell()


def json_object(path: Path, number: int, line: bytes) -> Row:
    """One line as an object.

    Raises DataError naming the line when it is not one.
    """
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}.", RULE, "Mend that line.") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number} is a {type(row).__name__}.", "A line is a JSON object.", "Mend that line."
        )
    return row
