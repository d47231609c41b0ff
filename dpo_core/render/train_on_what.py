"""Loss mask by message (``train_on_what``): which messages of a conversation are trained."""

from collections.abc import Sequence
from typing import get_args

from dpo_core.config.recipe import TrainOnWhat
from dpo_core.data.preference import Message
from dpo_core.errors import DataError, RecipeError

LAST: TrainOnWhat = "last_assistant_message"
CHOICES: tuple[TrainOnWhat, ...] = get_args(TrainOnWhat)


def trained_messages(messages: Sequence[Message], train_on_what: TrainOnWhat = LAST) -> list[bool]:
    """For every message, whether its output is trained; ``all_tokens`` trains the headers too.

    Raises RecipeError for an unknown ``train_on_what``, DataError for a missing or unused ``trainable`` flag.
    """
    if train_on_what not in CHOICES:
        rule = f"train_on_what is one of {', '.join(CHOICES)}."
        raise RecipeError(f"There is no train_on_what={train_on_what}.", rule, "Choose one of them.")
    check_flags(messages, train_on_what)
    if train_on_what == "customized":
        return [message["trainable"] for message in messages]
    if train_on_what in ("all_messages", "all_tokens"):
        return [True] * len(messages)
    if train_on_what == "all_user_and_system_messages":
        return [message["role"] in ("user", "system") for message in messages]
    start = first_trainable(messages, train_on_what)
    return [message["role"] == "assistant" and index >= start for index, message in enumerate(messages)]


def first_trainable(messages: Sequence[Message], train_on_what: TrainOnWhat) -> int:
    """Index of the first message from which assistants' messages are trained."""
    if train_on_what == "last_assistant_message":
        return max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    if train_on_what == "last_assistant_turn":
        return max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1) + 1
    return 0


def check_flags(messages: Sequence[Message], train_on_what: TrainOnWhat) -> None:
    """Raises DataError for a message without the flag that ``customized`` needs, or with a flag under another value."""
    for number, message in enumerate(messages, start=1):
        if ("trainable" in message) != (train_on_what == "customized"):
            verb = "has a" if "trainable" in message else "has no"
            raise DataError(
                f"Message {number} of a conversation ({message['role']}) {verb} trainable flag.",
                "train_on_what=customized reads it from every message, and no other value reads it.",
                "Set train_on_what=customized and flag every message, or remove the flags.",
            )
