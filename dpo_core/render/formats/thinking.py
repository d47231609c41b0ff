"""Think blocks in assistants' messages: ``<think>…</think>`` before the response."""

from typing import NamedTuple

from dpo_core.data.preference import Message
from dpo_core.render.message_pieces import Tag

OPEN, CLOSE = Tag("<think>"), Tag("</think>")


class Thought(NamedTuple):
    """The reasoning ("" for none) and the response of a message."""

    reasoning: str
    response: str


def split_thought(content: str) -> Thought:
    """Split a message's text as Qwen3's template does; without ``</think>`` all of it is the response."""
    if CLOSE not in content:
        return Thought("", content)
    before, _, response = content.rpartition(CLOSE)
    reasoning = before.partition(CLOSE)[0].rstrip("\n").rpartition(OPEN)[2].lstrip("\n")
    return Thought(reasoning.strip("\n"), response.lstrip("\n"))


def read_thought(text: str, gap: str = "\n") -> Thought:
    """Split generated text: a leading think block, closed or not, and the response after the format's ``gap``."""
    after_tag = text.removeprefix(OPEN)
    if after_tag == text:
        return Thought("", text)
    reasoning, _, response = after_tag.partition(CLOSE)
    return Thought(reasoning.strip("\n"), response.lstrip(gap))


def last_query(messages: list[Message]) -> int:
    """Index of the last user message that is not a tool's response, as in Qwen3's template.

    The conversation's last index where there is none.
    """
    queries = [index for index, message in enumerate(messages) if message["role"] == "user" and is_query(message)]
    return queries[-1] if queries else len(messages) - 1


def is_query(message: Message) -> bool:
    """Whether a user's message is not a tool's response."""
    text = message["content"]
    return not (text.startswith("<tool_response>") and text.endswith("</tool_response>"))
