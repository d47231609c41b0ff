"""Conversions of a row's columns (texts, lists of messages, whole conversations) to a preference pair."""

import functools
import itertools
from typing import Any

from dpo_core.data.preference import Message, Preference
from dpo_core.data.row_outcome import Convert, Dropped, Malformed, Outcome, Row, malformed_row, validate_pair
from dpo_core.pair import Pair

ROLES = ("system", "user", "assistant")


def tolerant(convert: Convert) -> Convert:
    """Decorator for conversions: a Malformed value or a missing column (KeyError) drops the row, counted by kind."""

    @functools.wraps(convert)
    def checked_convert(row: Row, where: str) -> Outcome:
        try:
            return convert(row, where)
        except Malformed as error:
            return malformed_row(error.kind, where, error.detail)
        except KeyError as error:
            return malformed_row("missing column", where, f"no column {error}")

    return checked_convert


def parse_messages(value: Any, role: str) -> list[Message]:
    """The messages of a column: a text is one message of ``role``, a list is a list of messages.

    Raises Malformed for anything else, and for an empty list.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Malformed("neither text nor messages", f"{role}'s part is {value!r:.60}")
    if not value:
        raise Malformed("no message", f"{role}'s part is an empty list")
    return [parse_message(item) for item in value]


def parse_message(item: Any) -> Message:
    """One message with its role, its text and its ``trainable`` flag, if any; other keys are dropped.

    Raises Malformed for another role, a content that is not a text, or a flag that is not a bool.
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
    """A pair from columns that say which response is chosen; each column is a text or a list of messages.

    A text is one message, the user's in ``prompt`` and the assistant's in the others. A side that does not begin with
    an assistant's message is a whole conversation that includes the prompt. ``where`` names the row. Raises Malformed
    for a column that is neither.
    """
    sides = Pair(parse_messages(chosen, "assistant"), parse_messages(rejected, "assistant"))
    if sides.chosen[0]["role"] == "assistant" and sides.rejected[0]["role"] == "assistant":
        return validate_pair(Preference(parse_messages(prompt, "user"), sides), where)
    prompt_messages = parse_messages(prompt, "user")
    if prompt_messages[-1] not in sides.chosen[:-1]:
        return Dropped("different prompts", where)
    return convert_conversations(sides, where)


def convert_conversations(sides: Pair[list[Message]], where: str) -> Outcome:
    """A pair from two conversations that share every message but the last, which is the assistant's."""
    if sides.chosen[:-1] != sides.rejected[:-1]:
        return Dropped("different prompts", where)
    return validate_pair(Preference(sides.chosen[:-1], sides.map(lambda side: side[-1:])), where)


def convert_diverging(sides: Pair[list[Message]], where: str) -> Outcome:
    """A pair from two conversations; the messages that both begin with are the prompt, the rest are the completions."""
    message_pairs = zip(sides.chosen, sides.rejected, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], message_pairs))
    if sides.chosen == sides.rejected:
        return Dropped("equal sides", where)
    rest = sides.map(lambda side: side[shared:])
    if any(side and side[0]["role"] != "assistant" for side in (rest.chosen, rest.rejected)):
        return Dropped("different prompts", where)
    return validate_pair(Preference(sides.chosen[:shared], rest), where)


def convert_comparison(row: Row, where: str) -> Outcome:
    """A pair from upstream's schema (comparison, label); a tie is dropped (upstream trains B as chosen)."""
    if row["label"] == "Tie":
        return Dropped("tie", where)
    if row["label"] not in ("A", "B"):
        raise Malformed("unknown label", f"label {row['label']!r:.40} is none of A, B, Tie")
    completions = row["comparison"] if isinstance(row["comparison"], dict) else {}
    sides = Pair(completions.get("completion_A"), completions.get("completion_B"))
    sides = sides if row["label"] == "A" else sides.swap()
    return labelled(completions.get("prompt_conversation"), sides.chosen, sides.rejected, where)
