"""Preference pairs from a JSONL file (optionally .gz), in our schema, upstream's or HH's."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo_core.data.hhh import from_transcripts
from dpo_core.data.preference import Message, Preference
from dpo_core.data.rows import Dropped, checked
from dpo_core.errors import DataError
from dpo_core.pair import Pair

SCHEMAS = (
    '{"prompt", "chosen", "rejected"}, {"chosen", "rejected"} as Human/Assistant transcripts, '
    'or {"comparison", "label"}'
)


def read(path: Path) -> Iterator[Preference | Dropped]:
    """Every line as a pair, or as the reason why it is none.

    Raises DataError for a missing or empty file, a line that is not JSON, or columns of no known schema.
    """
    count = 0
    for number, row in json_lines(path):
        count += 1
        yield convert(row, f"{path.name}:{number}")
    if not count:
        raise DataError(f"{path} is empty.", "A dataset file holds one JSON object a line.", "Check the file.")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects; blank lines are passed over."""
    if not path.is_file():
        raise DataError(f"There is no dataset file {path}.", "dataset is hhh, demo or a JSONL file.", "Check the path.")
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, json_object(path, number, line)


def opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked when its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """One line as an object.

    Raises DataError naming the line when it is not one.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}, line {number} is not JSON: {error}.",
            "A dataset file holds one JSON object a line.",
            "Mend that line.",
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number} is a {type(row).__name__}.", "A line is a JSON object.", f"Schemas: {SCHEMAS}."
        )
    return row


def convert(row: dict[str, Any], where: str) -> Preference | Dropped:
    """A row of any of the three schemas.

    Raises DataError when its columns belong to none.
    """
    if {"prompt", "chosen", "rejected"} <= row.keys():
        return labelled(row["prompt"], row["chosen"], row["rejected"], where)
    if {"comparison", "label"} <= row.keys():
        return comparison(row, where)
    if {"chosen", "rejected"} <= row.keys():
        return from_transcripts(row["chosen"], row["rejected"], where)
    raise DataError(f"{where} has columns {sorted(row)}.", f"Known schemas: {SCHEMAS}.", "Rename the columns.")


def labelled(prompt: Any, chosen: Any, rejected: Any, where: str) -> Preference | Dropped:
    """Our schema: texts, or lists of messages; a text is one user's, or one assistant's, message."""
    try:
        sides = Pair(messages(chosen, "assistant"), messages(rejected, "assistant"))
        return checked(Preference(messages(prompt, "user"), sides), where)
    except (TypeError, ValueError, KeyError) as error:
        return Dropped("malformed", f"{where}: {error}")


def comparison(row: dict[str, Any], where: str) -> Preference | Dropped:
    """Upstream's schema; a tie is dropped (upstream trains B as chosen)."""
    if row["label"] == "Tie":
        return Dropped("tie", where)
    if row["label"] not in ("A", "B"):
        return Dropped("malformed", f"{where}: label {row['label']!r} is none of A, B, Tie")
    told = row["comparison"] if isinstance(row["comparison"], dict) else {}
    first, second = told.get("completion_A"), told.get("completion_B")
    chosen, rejected = (first, second) if row["label"] == "A" else (second, first)
    return labelled(told.get("prompt_conversation"), chosen, rejected, where)


def messages(value: Any, role: str) -> list[Message]:
    """A text or a list of messages as messages.

    Raises ValueError saying what is wrong with it.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{role}'s part is {value!r:.60}, neither a text nor a list of messages")
    return [message(item) for item in value]


def message(item: Any) -> Message:
    """One message with a known role and a text.

    Raises ValueError saying what is wrong with it.
    """
    if not isinstance(item, dict) or not isinstance(item.get("content"), str):
        raise ValueError(f"{item!r:.60} is not a message with a text as content")
    if item.get("role") not in ("system", "user", "assistant"):
        raise ValueError(f"role {item.get('role')!r} is none of system, user, assistant")
    if "trainable" not in item:
        return {"role": item["role"], "content": item["content"]}
    if not isinstance(item["trainable"], bool):
        raise ValueError(f"trainable is {item['trainable']!r:.60}, neither true nor false")
    return {"role": item["role"], "content": item["content"], "trainable": item["trainable"]}
