"""Outcome of converting a dataset row: a preference pair, or the cause for which the row is dropped."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpo_core.data.preference import Message, Preference

MALFORMED = "malformed"
EXAMPLE_CHARACTERS = 200
# Columns in which mixtures name the source of a row.
SOURCE_COLUMNS = "source", "domain"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropped row. ``cause``: what the report counts it under; ``detail``: which row it is, and what is wrong."""

    cause: str
    detail: str


Row = dict[str, Any]
Outcome = Preference | Dropped
Convert = Callable[[Row, str], Outcome]


class Malformed(ValueError):
    """A value that breaks the schema. ``kind``: what the report counts it under; ``detail``: the value found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def malformed_row(kind: str, where: str, detail: str) -> Dropped:
    """A dropped row that breaks the schema, counted under its kind. ``where`` names the row."""
    return Dropped(f"{MALFORMED}: {kind}", f"{where}: {detail}"[:EXAMPLE_CHARACTERS])


def validate_pair(pair: Preference, where: str) -> Outcome:
    """The pair, or Dropped when its prompt or a response is empty, its sides are equal, or a text is not UTF-8."""
    sides = (pair.sides.chosen, pair.sides.rejected)
    if not any(has_text(message) for message in pair.prompt):
        return malformed_row("empty prompt", where, "nothing is said before the reply")
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        return malformed_row("no reply", where, "each side ends with an assistant's message")
    if any(not has_text(side[-1]) for side in sides):
        return Dropped("empty reply", where)
    if pair.sides.chosen == pair.sides.rejected:
        return Dropped("equal sides", where)
    if not encodable(pair):
        return malformed_row("lone surrogate", where, "a lone surrogate is not text")
    return pair


def with_source(outcome: Outcome, row: Row) -> Outcome:
    """The outcome with the source that the row names, if it names one."""
    name = next((row[column] for column in SOURCE_COLUMNS if isinstance(row.get(column), str)), "")
    return replace(outcome, source=name) if name and isinstance(outcome, Preference) else outcome


def has_text(message: Message) -> bool:
    """Whether the message has any text but white space."""
    return bool(message["content"].strip())


def encodable(pair: Preference) -> bool:
    """Whether every text of the pair can be encoded as UTF-8."""
    texts = [message["content"] for part in (pair.prompt, pair.sides.chosen, pair.sides.rejected) for message in part]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
