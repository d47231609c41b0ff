"""``train_on_what``: which messages of a conversation carry loss."""

from collections.abc import Sequence
from typing import get_args

from dpo_core.config.recipe import TrainOnWhat
from dpo_core.data.preference import Message
from dpo_core.errors import DataError, RecipeError

LAST: TrainOnWhat = "last_assistant_message"
KNOWN: tuple[TrainOnWhat, ...] = get_args(TrainOnWhat)


def trained_messages(messages: Sequence[Message], what: TrainOnWhat = LAST) -> list[bool]:
    """For every message whether its output is trained; ``all_tokens`` trains the headers too.

    Raises RecipeError for another ``what``, DataError where ``trainable`` flags and ``what`` do not go together.
    """
    if what not in KNOWN:
        rule = f"train_on_what is one of {', '.join(KNOWN)}."
        raise RecipeError(f"There is no train_on_what={what}.", rule, "Choose one of them.")
    check_flags(messages, what)
    if what == "customized":
        return [message["trainable"] for message in messages]
    if what in ("all_messages", "all_tokens"):
        return [True] * len(messages)
    if what == "all_user_and_system_messages":
        return [message["role"] in ("user", "system") for message in messages]
    start = first_trainable(messages, what)
    return [message["role"] == "assistant" and index >= start for index, message in enumerate(messages)]


def first_trainable(messages: Sequence[Message], what: TrainOnWhat) -> int:
    """The index from which assistants' messages are trained."""
    if what == "last_assistant_message":
        return max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    if what == "last_assistant_turn":
        return max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1) + 1
    return 0


def check_flags(messages: Sequence[Message], what: TrainOnWhat) -> None:
    """Raises DataError for a message without the flag that ``customized`` reads, or with one that nothing reads."""
    for number, message in enumerate(messages, start=1):
        if ("trainable" in message) != (what == "customized"):
            has = "has a" if "trainable" in message else "has no"
            raise DataError(
                f"Message {number} of a conversation ({message['role']}) {has} trainable flag.",
                "train_on_what=customized reads it from every message, and no other value reads it.",
                "Set train_on_what=customized and flag every message, or remove the flags.",
            )
