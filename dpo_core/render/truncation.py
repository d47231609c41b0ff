"""Truncation of prompts: whole oldest turns first, then the beginning of the last user's text; headers stay whole.

A truncated prompt is the rendering of a shorter conversation, so BOS, headers, end markers and the generation header
are exactly the renderer's.
"""

import re
from math import ceil

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Renderer

LEAST_TEXT = 16
"""Minimum number of tokens of the last user's text that any prompt keeps (a shorter text stays whole)."""
LEAST_RESPONSE = 1 / 2
"""Minimum share of ``max_length`` for responses that are cut; a longer prompt has no room."""
BESIDE_CUT_RESPONSES = 1 / 4
"""Maximum share of ``max_length`` for a prompt beside responses that are cut."""


def prompt_room(smallest: int, longest_side: int, max_length: int) -> int | None:
    """Maximum tokens of a prompt, from the tokens of its smallest version and of the longer side; None for no room.

    Responses are cut only where the smallest prompt does not fit beside them.
    """
    if smallest + longest_side <= max_length:
        return max_length - longest_side
    if smallest > max_length * LEAST_RESPONSE:
        return None
    return max(smallest, int(max_length * BESIDE_CUT_RESPONSES))


class PromptCutter:
    """Makes shorter versions of prompts. ``texts`` caches the ids of message texts."""

    def __init__(self, renderer: Renderer, prefilled: bool, texts: dict[str, list[int]]) -> None:
        self.renderer, self.prefilled, self.texts = renderer, prefilled, texts

    def length(self, prompt: list[Message]) -> int:
        """Number of tokens of a prompt, the generation header included.

        Raises DataError when the renderer cannot express it.
        """
        pieces = self.renderer.prompt(prompt, self.prefilled)
        return len(self.renderer.encoder.join_with_cache(pieces, self.texts))

    def smallest(self, prompt: list[Message]) -> list[Message]:
        """The smallest version: system messages and the last turn with the last LEAST_TEXT tokens of its text."""
        while shorter := without_oldest_turn(prompt):
            prompt = shorter
        return self.keep_text_end(prompt, LEAST_TEXT)

    def truncate(self, prompt: list[Message], room: int) -> list[Message]:
        """The longest version of at most ``room`` tokens; ``room`` must be enough for the smallest version."""
        while (over := self.length(prompt) - room) > 0 and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
        if over <= 0:
            return prompt
        smallest = self.smallest(prompt)
        kept = LEAST_TEXT + room - self.length(smallest)
        while kept > LEAST_TEXT:
            shorter = self.keep_text_end(prompt, kept)
            over = self.length(shorter) - room
            if over <= 0:
                return shorter
            kept -= over
        return smallest

    def keep_text_end(self, prompt: list[Message], kept: int) -> list[Message]:
        """The prompt with about the last ``kept`` tokens of the text of :func:`cut_message`."""
        index = cut_message(prompt)
        text = prompt[index]["content"].strip()
        ids = self.ids(text)
        if len(ids) <= kept:
            return prompt
        # Characters to keep: those that the ids decode to, or the ids' share of the text where they decode to nothing.
        size = len(self.renderer.decode(ids[-kept:])) or ceil(len(text) * kept / len(ids))
        message = prompt[index] | {"content": last_words(text, size)}
        return [*prompt[:index], message, *prompt[index + 1 :]]

    def ids(self, text: str) -> list[int]:
        """The ids of a message's text."""
        if text not in self.texts:
            self.texts[text] = self.renderer.encoder.encode_text(text)
        return self.texts[text]


def last_words(text: str, size: int) -> str:
    """About the last ``size`` characters of a text, from the start of a word unless that loses half of them."""
    start = max(len(text) - size, 0)
    end = text[start:]
    if start and not text[start - 1].isspace():
        words = re.split(r"\s", end, maxsplit=1)[-1].lstrip()
        end = words if 2 * len(words) >= len(end) else end
    return end.lstrip()


def cut_message(prompt: list[Message]) -> int:
    """The index of the message whose text may be cut: the last user's, or the last where there is none."""
    users = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    return users[-1] if users else len(prompt) - 1


def without_oldest_turn(prompt: list[Message]) -> list[Message]:
    """The leading system messages and the conversation from its second user message on; empty without one."""
    kept = next((index for index, message in enumerate(prompt) if message["role"] != "system"), len(prompt))
    users = [index for index, message in enumerate(prompt) if message["role"] == "user" and index > kept]
    return prompt[:kept] + prompt[users[0] :] if users else []
