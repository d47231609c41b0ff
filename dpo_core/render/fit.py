"""One preference to token ids of at most ``max_length``: the response is never lost before the prompt."""

from dataclasses import dataclass

import numpy as np

from dpo_core.data.preference import Message, Preference
from dpo_core.pair import Pair
from dpo_core.render.rendered import Completion, TokenPair
from dpo_core.render.renderer import Renderer


@dataclass(frozen=True, slots=True)
class Fitted:
    """A token pair, and whether anything of it had to go."""

    pair: TokenPair
    truncated: bool


def fit(renderer: Renderer, preference: Preference, max_length: int) -> Fitted:
    """Render a preference within ``max_length`` tokens.

    Whole oldest turns of the prompt go first, then its left tokens. A completion longer than the budget is cut at
    its right end, and so carries no end-of-turn token. At least one prompt token stays, to predict the first from.
    """
    whole = render_pair(renderer, preference.prompt, preference.sides)
    if whole.longest <= max_length:
        return Fitted(whole, False)
    sides = whole.sides.map(lambda side: cut(side, max_length - 1))
    room = max_length - max(len(sides.chosen.ids), len(sides.rejected.ids))
    prompt = list(preference.prompt)
    ids = whole.prompt
    while len(ids) > room and (shorter := without_oldest_turn(prompt)):
        prompt = shorter
        ids = np.array(renderer.build_generation_prompt(prompt), dtype=np.int32)
    return Fitted(TokenPair(ids[max(len(ids) - room, 0) :], sides), True)


def render_pair(renderer: Renderer, prompt: list[Message], sides: Pair[list[Message]]) -> TokenPair:
    """The prompt rendered once; each side is what a conversation has after exactly these tokens."""
    ids = renderer.build_generation_prompt(prompt)

    def complete(side: list[Message]) -> Completion:
        example = renderer.build_supervised_example([*prompt, *side])
        assert example.ids[: len(ids)] == ids, "a completion must begin where its prompt ends"
        return Completion(
            np.array(example.ids[len(ids) :], dtype=np.int32), np.array(example.weights[len(ids) :], dtype=np.bool_)
        )

    return TokenPair(np.array(ids, dtype=np.int32), sides.map(complete))


def cut(side: Completion, length: int) -> Completion:
    """The first ``length`` tokens of a completion."""
    return Completion(side.ids[:length], side.mask[:length])


def without_oldest_turn(prompt: list[Message]) -> list[Message]:
    """The conversation from its second user message on, system message kept; empty when there is no older turn."""
    kept = 1 if prompt[0]["role"] == "system" else 0
    users = [index for index, message in enumerate(prompt) if message["role"] == "user" and index > kept]
    return prompt[:kept] + prompt[users[0] :] if users else []
