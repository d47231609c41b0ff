"""Truncation of prompts: whole oldest turns first, then the beginning of the last user's text; headers stay whole.

A shorter prompt is always a rendering of a shorter conversation, so BOS, headers, end markers and the generation
header are exactly what the renderer writes.
"""

import re
from math import ceil

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Renderer

LEAST_TEXT = 16
"""Tokens of the last user's text that any prompt keeps, or the whole text where it is shorter."""
LEAST_RESPONSE = 1 / 2
"""Share of ``max_length`` that cut responses keep: a prompt that leaves them less has no room."""
BESIDE_CUT_RESPONSES = 1 / 4
"""Share of ``max_length`` that a prompt may take beside responses that have to be cut anyway."""


def prompt_room(smallest: int, longest_side: int, max_length: int) -> int | None:
    """Tokens that the prompt may take, its smallest version and the longer side being this long; None for no room.

    Responses stay whole as long as the smallest prompt fits beside them. Only where it does not are they cut.
    """
    if smallest + longest_side <= max_length:
        return max_length - longest_side
    if smallest > max_length * LEAST_RESPONSE:
        return None
    return max(smallest, int(max_length * BESIDE_CUT_RESPONSES))


class PromptCutter:
    """Shorter versions of prompts. ``texts`` holds ids that are known already, and takes up new ones."""

    def __init__(self, renderer: Renderer, prefilled: bool, texts: dict[str, list[int]]) -> None:
        self.renderer, self.prefilled, self.texts = renderer, prefilled, texts

    def length(self, prompt: list[Message]) -> int:
        """Tokens of a prompt, the generation header included.

        Raises DataError when the renderer cannot express it.
        """
        pieces = self.renderer.prompt(prompt, self.prefilled)
        return len(self.renderer.encoder.join_new(pieces, self.texts))

    def smallest(self, prompt: list[Message]) -> list[Message]:
        """The last turn alone, behind the system message, with the last LEAST_TEXT tokens of its text."""
        while shorter := without_oldest_turn(prompt):
            prompt = shorter
        return self.ending(prompt, LEAST_TEXT)

    def within(self, prompt: list[Message], room: int) -> list[Message]:
        """The longest version of at most ``room`` tokens, which are enough for the smallest."""
        while (over := self.length(prompt) - room) > 0 and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
        if over <= 0:
            return prompt
        smallest = self.smallest(prompt)
        kept = LEAST_TEXT + room - self.length(smallest)
        while kept > LEAST_TEXT:
            shorter = self.ending(prompt, kept)
            over = self.length(shorter) - room
            if over <= 0:
                return shorter
            kept -= over
        return smallest

    def ending(self, prompt: list[Message], kept: int) -> list[Message]:
        """The prompt with about the last ``kept`` tokens of the text that may be cut."""
        index = cut_message(prompt)
        text = prompt[index]["content"].strip()
        ids = self.ids(text)
        if len(ids) <= kept:
            return prompt
        # How much text these ids are: what they decode to, or their share of it where they say nothing (unknown ones).
        size = len(self.renderer.decode(ids[-kept:])) or ceil(len(text) * kept / len(ids))
        message = prompt[index] | {"content": last_words(text, size)}
        return [*prompt[:index], message, *prompt[index + 1 :]]

    def ids(self, text: str) -> list[int]:
        """The ids of a message's text."""
        if text not in self.texts:
            self.texts[text] = self.renderer.encoder.encode_text(text)
        return self.texts[text]


def last_words(text: str, size: int) -> str:
    """About the last ``size`` characters of a text, from the beginning of a word unless half of them would go."""
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
    """The conversation from its second user message on, leading system messages kept; empty without an older turn."""
    kept = next((index for index, message in enumerate(prompt) if message["role"] != "system"), len(prompt))
    users = [index for index, message in enumerate(prompt) if message["role"] == "user" and index > kept]
    return prompt[:kept] + prompt[users[0] :] if users else []
