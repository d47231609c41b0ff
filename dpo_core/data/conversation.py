"""Columns as messages: texts, lists of messages, whole conversations. What is none of them is malformed."""

import functools
import itertools
from typing import Any

from dpo_core.data.preference import Message, Preference
from dpo_core.data.row_outcome import Convert, Dropped, Malformed, Outcome, Row, checked, malformed
from dpo_core.pair import Pair

ROLES = ("system", "user", "assistant")


def tolerant(convert: Convert) -> Convert:
    """A conversion whose Malformed values and missing columns drop the row, counted by kind."""

    @functools.wraps(convert)
    def guarded(row: Row, where: str) -> Outcome:
        try:
            return convert(row, where)
        except Malformed as error:
            return malformed(error.kind, where, error.detail)
        except KeyError as error:
            return malformed("missing column", where, f"no column {error}")

    return guarded


def messages(value: Any, role: str) -> list[Message]:
    """A text, which is one message of ``role``, or a list of messages.

    Raises Malformed saying what is wrong with it.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Malformed("neither text nor messages", f"{role}'s part is {value!r:.60}")
    if not value:
        raise Malformed("no message", f"{role}'s part is an empty list")
    return [message(item) for item in value]


def message(item: Any) -> Message:
    """One message with a known role and a text, its ``trainable`` flag if it has one, and no other column.

    Raises Malformed saying what is wrong with it.
    """
    if not isinstance(item, dict):
        raise Malformed("neither text nor messages", f"{item!r:.60} is not a message")
    if item.get("role") not in ROLES:
        raise Malformed("unknown role", f"role {item.get('role')!r:.40} is none of {', '.join(ROLES)}")
    if not isinstance(item.get("content"), str):
        raise Malformed("content is not a text", f"{item['role']}'s content is {item.get('content')!r:.60}")
    trainable = item.get("trainable")
    if trainable is None:
        return {"role": item["role"], "content": item["content"]}
    if not isinstance(trainable, bool):
        raise Malformed("trainable is not a flag", f"trainable is {trainable!r:.60}, neither true nor false")
    return {"role": item["role"], "content": item["content"], "trainable": trainable}


def labelled(prompt: Any, chosen: Any, rejected: Any, where: str) -> Outcome:
    """Our schema: texts, or lists of messages; a text is one user's, or one assistant's, message.

    Sides that begin with another's message are whole conversations, the prompt included.
    """
    sides = Pair(messages(chosen, "assistant"), messages(rejected, "assistant"))
    if sides.chosen[0]["role"] == "assistant" and sides.rejected[0]["role"] == "assistant":
        return checked(Preference(messages(prompt, "user"), sides), where)
    told = messages(prompt, "user")
    if told[-1] not in sides.chosen[:-1]:
        return Dropped("different prompts", where)
    return conversations(sides, where)


def conversations(sides: Pair[list[Message]], where: str) -> Outcome:
    """Two conversations that share every message but a last, differing assistant one."""
    if sides.chosen[:-1] != sides.rejected[:-1]:
        return Dropped("different prompts", where)
    return checked(Preference(sides.chosen[:-1], sides.map(lambda side: side[-1:])), where)


def diverging(sides: Pair[list[Message]], where: str) -> Outcome:
    """Two conversations that begin alike: what they share is the prompt, and assistants' messages set them apart."""
    both = zip(sides.chosen, sides.rejected, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], both))
    if sides.chosen == sides.rejected:
        return Dropped("equal sides", where)
    rest = sides.map(lambda side: side[shared:])
    if any(side and side[0]["role"] != "assistant" for side in (rest.chosen, rest.rejected)):
        return Dropped("different prompts", where)
    return checked(Preference(sides.chosen[:shared], rest), where)


def comparison(row: Row, where: str) -> Outcome:
    """Upstream's schema; a tie is dropped (upstream trains B as chosen)."""
    if row["label"] == "Tie":
        return Dropped("tie", where)
    if row["label"] not in ("A", "B"):
        raise Malformed("unknown label", f"label {row['label']!r:.40} is none of A, B, Tie")
    told = row["comparison"] if isinstance(row["comparison"], dict) else {}
    sides = Pair(told.get("completion_A"), told.get("completion_B"))
    sides = sides if row["label"] == "A" else sides.swap()
    return labelled(told.get("prompt_conversation"), sides.chosen, sides.rejected, where)
