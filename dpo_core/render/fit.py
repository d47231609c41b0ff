"""Preferences to token ids of at most ``max_length``: the response is never lost before the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpo_core.data.preference import Message, Preference
from dpo_core.errors import DataError
from dpo_core.pair import Pair
from dpo_core.recipe import TrainOnWhat
from dpo_core.render.encoder import Encoder
from dpo_core.render.rendered import Completion, TokenPair
from dpo_core.render.renderer import Renderer
from dpo_core.render.turn import Pieces, Stretch
from dpo_core.render.weights import LAST


@dataclass(frozen=True, slots=True)
class Fitted:
    """A token pair, and whether anything of it had to go."""

    pair: TokenPair
    truncated: bool


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A preference in pieces: the prompt's, and the stretches of each side after it."""

    preference: Preference
    prompt: Pieces
    sides: Pair[list[Stretch]]

    def texts(self) -> Iterator[Pieces]:
        """Everything in it."""
        yield self.prompt
        for side in (self.sides.chosen, self.sides.rejected):
            yield from (stretch.pieces for stretch in side)


def fit(renderer: Renderer, preference: Preference, max_length: int, what: TrainOnWhat = LAST) -> Fitted:
    """Render a preference within ``max_length`` tokens.

    Whole oldest turns of the prompt go first, then its left tokens. A completion longer than the budget is cut at
    its right end, and so carries no end-of-turn token. At least one prompt token stays, to predict the first from.
    Raises DataError when the renderer cannot express the conversation.
    """
    return shortened(renderer, preference, render_pair(renderer, preference.prompt, preference.sides, what), max_length)


def fit_all(
    renderer: Renderer, preferences: Sequence[Preference], max_length: int, what: TrainOnWhat = LAST
) -> list[Fitted | DataError]:
    """What :func:`fit` makes of each preference, all tokenised together; an error where it would raise one."""
    laid = [lay_out_or_error(renderer, preference, what) for preference in preferences]
    texts = renderer.encoder.encode_all(pieces for one in laid if isinstance(one, LaidOut) for pieces in one.texts())
    return [
        shortened(renderer, one.preference, assemble(renderer.encoder, one, texts), max_length)
        if isinstance(one, LaidOut)
        else one
        for one in laid
    ]


def shortened(renderer: Renderer, preference: Preference, whole: TokenPair, max_length: int) -> Fitted:
    """A rendered pair within ``max_length`` tokens."""
    if whole.longest <= max_length:
        return Fitted(whole, False)
    sides = whole.sides.map(lambda side: cut(side, max_length - 1))
    room = max_length - max(len(sides.chosen.ids), len(sides.rejected.ids))
    prompt = list(preference.prompt)
    ids = whole.prompt
    while len(ids) > room and (shorter := without_oldest_turn(prompt)):
        prompt = shorter
        pieces = renderer.prompt(prompt, prefilled=single(preference.sides))
        ids = np.array(renderer.encoder.encode(pieces), dtype=np.int32)
    return Fitted(TokenPair(ids[max(len(ids) - room, 0) :], sides), True)


def render_pair(
    renderer: Renderer, prompt: list[Message], sides: Pair[list[Message]], what: TrainOnWhat = LAST
) -> TokenPair:
    """The prompt rendered once; each side is what a conversation has after exactly these tokens.

    Raises DataError when the renderer cannot express the conversation.
    """
    laid = lay_out(renderer, Preference(prompt, sides), what)
    return assemble(renderer.encoder, laid, renderer.encoder.encode_all(laid.texts()))


def lay_out(renderer: Renderer, preference: Preference, what: TrainOnWhat) -> LaidOut:
    """A preference in pieces.

    Where a side has several messages, what the prompt would open the first with (an empty think block) stands in the
    completions instead, for it belongs to the last message only.
    """
    prompt, sides = preference.prompt, preference.sides
    prefilled = single(sides)
    stretches = sides.map(lambda side: renderer.completion(prompt, side, what, prefilled))
    return LaidOut(preference, renderer.prompt(prompt, prefilled), stretches)


def lay_out_or_error(renderer: Renderer, preference: Preference, what: TrainOnWhat) -> LaidOut | DataError:
    """A preference in pieces, or why the renderer cannot express it."""
    try:
        return lay_out(renderer, preference, what)
    except DataError as error:
        return error


def single(sides: Pair[list[Message]]) -> bool:
    """Whether either side is one message."""
    return len(sides.chosen) == len(sides.rejected) == 1


def assemble(encoder: Encoder, laid: LaidOut, texts: dict[str, list[int]]) -> TokenPair:
    """The ids of a preference in pieces, whose texts are encoded already."""

    def complete(side: list[Stretch]) -> Completion:
        ids: list[int] = []
        mask: list[bool] = []
        for pieces, trained in side:
            encoded = encoder.join(pieces, texts)
            ids += encoded
            mask += [trained] * len(encoded)
        return Completion(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))

    prompt = np.array(encoder.join(laid.prompt, texts), dtype=np.int32)
    return TokenPair(prompt, laid.sides.map(complete))


def cut(side: Completion, length: int) -> Completion:
    """The first ``length`` tokens of a completion."""
    return Completion(side.ids[:length], side.mask[:length])


def without_oldest_turn(prompt: list[Message]) -> list[Message]:
    """The conversation from its second user message on, system message kept; empty when there is no older turn."""
    kept = 1 if prompt[0]["role"] == "system" else 0
    users = [index for index, message in enumerate(prompt) if message["role"] == "user" and index > kept]
    return prompt[:kept] + prompt[users[0] :] if users else []
