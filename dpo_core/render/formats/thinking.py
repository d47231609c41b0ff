"""Think blocks in assistants' messages: ``<think>…</think>`` before what is said."""

from typing import NamedTuple

from dpo_core.data.preference import Message
from dpo_core.render.message_pieces import Tag

OPEN, CLOSE = Tag("<think>"), Tag("</think>")


class Thought(NamedTuple):
    """A message in two: its reasoning ("" for none) and what it says."""

    reasoning: str
    said: str


def split_thought(content: str) -> Thought:
    """A message's text as Qwen3's template reads it; without ``</think>`` it is said as it stands."""
    if CLOSE not in content:
        return Thought("", content)
    before, _, said = content.rpartition(CLOSE)
    reasoning = before.partition(CLOSE)[0].rstrip("\n").rpartition(OPEN)[2].lstrip("\n")
    return Thought(reasoning.strip("\n"), said.lstrip("\n"))


def read_thought(text: str, gap: str = "\n") -> Thought:
    """What a model generated: a leading think block, closed or not, and the rest after the format's ``gap``."""
    opened = text.removeprefix(OPEN)
    if opened == text:
        return Thought("", text)
    reasoning, _, said = opened.partition(CLOSE)
    return Thought(reasoning.strip("\n"), said.lstrip(gap))


def last_query(messages: list[Message]) -> int:
    """The index of the user's last question as Qwen3's template counts: answers of tools are none.

    The conversation's last index where there is none.
    """
    queries = [index for index, message in enumerate(messages) if message["role"] == "user" and asks(message)]
    return queries[-1] if queries else len(messages) - 1


def asks(message: Message) -> bool:
    """Whether a user's message is more than a tool's answer."""
    text = message["content"]
    return not (text.startswith("<tool_response>") and text.endswith("</tool_response>"))
