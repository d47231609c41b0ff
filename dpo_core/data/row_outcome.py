"""What a row of a dataset is: a usable pair, or a reason why not."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpo_core.data.preference import Message, Preference

MALFORMED = "malformed"
EXAMPLE_CHARACTERS = 200
# Columns in which the mixtures say where a row comes from.
SOURCES = "source", "domain"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not trained on: its cause (as counted in the report), and which row it was."""

    cause: str
    detail: str


Row = dict[str, Any]
Outcome = Preference | Dropped
Convert = Callable[[Row, str], Outcome]


class Malformed(ValueError):
    """A value that is not what its column must hold. kind: what the report counts it under."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def malformed(kind: str, where: str, detail: str) -> Dropped:
    """A row that breaks the schema, counted under its kind; the first of each kind is shown."""
    return Dropped(f"{MALFORMED}: {kind}", f"{where}: {detail}"[:EXAMPLE_CHARACTERS])


def checked(pair: Preference, where: str) -> Outcome:
    """The pair, unless it has nothing to teach: an empty reply, equal sides, no user before the answer."""
    sides = (pair.sides.chosen, pair.sides.rejected)
    if not any(said(message) for message in pair.prompt):
        return malformed("empty prompt", where, "nothing is said before the reply")
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        return malformed("no reply", where, "each side ends with an assistant's message")
    if any(not said(side[-1]) for side in sides):
        return Dropped("empty reply", where)
    if pair.sides.chosen == pair.sides.rejected:
        return Dropped("equal sides", where)
    if not encodable(pair):
        return malformed("lone surrogate", where, "a lone surrogate is not text")
    return pair


def sourced(outcome: Outcome, row: Row) -> Outcome:
    """A pair with the source that its row tells, if it does."""
    name = next((row[column] for column in SOURCES if isinstance(row.get(column), str)), "")
    return replace(outcome, source=name) if name and isinstance(outcome, Preference) else outcome


def said(message: Message) -> bool:
    """Whether a message says anything."""
    return bool(message["content"].strip())


def encodable(pair: Preference) -> bool:
    """Whether every text can be written as UTF-8."""
    texts = [message["content"] for part in (pair.prompt, pair.sides.chosen, pair.sides.rejected) for message in part]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
