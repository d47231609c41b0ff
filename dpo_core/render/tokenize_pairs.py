"""Preferences to token ids of at most ``max_length``: neither the response is lost nor the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpo_core.config.recipe import OverLength, TrainOnWhat
from dpo_core.data.lengths import CHOSEN, LAST_TEXT, NO_ROOM, OLDER_TURNS, OVER_LENGTH, REJECTED
from dpo_core.data.preference import Message, Preference
from dpo_core.errors import DataError
from dpo_core.pair import Pair
from dpo_core.render.encoder import Encoder
from dpo_core.render.message_pieces import Pieces, PieceSpan
from dpo_core.render.renderer import Renderer
from dpo_core.render.token_dataset import CompletionTokens, Ids, TokenPair
from dpo_core.render.train_on_what import LAST
from dpo_core.render.truncation import PromptCutter, cut_message, prompt_room


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A token pair within ``max_length``, what of it had to go (of CUTS), and its ``longest`` side's tokens before.

    ``whole_prompt``: the prompt's ids (P,) int32 before, where something of them had to go.
    """

    pair: TokenPair
    longest: int
    cuts: tuple[str, ...] = ()
    whole_prompt: Ids | None = None

    @property
    def truncated(self) -> bool:
        """Whether anything had to go."""
        return bool(self.cuts)


@dataclass(frozen=True, slots=True)
class TooLong:
    """A pair that is dropped for its length: the cause, and its longer side's tokens."""

    cause: str
    longest: int


@dataclass(frozen=True, slots=True)
class PairPieces:
    """A preference in pieces: the prompt's, and the stretches of each side after it."""

    preference: Preference
    prompt: Pieces
    sides: Pair[list[PieceSpan]]

    def texts(self) -> Iterator[Pieces]:
        """Everything in it."""
        yield self.prompt
        for side in (self.sides.chosen, self.sides.rejected):
            yield from (stretch.pieces for stretch in side)


class PairTokenizer:
    """Renders preferences within ``max_length`` tokens.

    Longer ones are dropped (``over_length="drop"``) or cut. Then whole oldest turns of the prompt go first, then the
    beginning of its last user's text, as :mod:`dpo_core.render.truncation` says: headers stay whole. Responses are cut
    last, at their right end, and so carry no end-of-turn token. A pair without room for its prompt is dropped.
    """

    def __init__(
        self, renderer: Renderer, max_length: int, what: TrainOnWhat = LAST, over_length: OverLength = "cut"
    ) -> None:
        self.renderer, self.max_length, self.what, self.over_length = renderer, max_length, what, over_length

    def fit_all(self, preferences: Sequence[Preference]) -> list[TokenizedPair | TooLong | DataError]:
        """Every preference, all tokenised together; an error where the renderer cannot express one."""
        laid = [lay_out_or_error(self.renderer, preference, self.what) for preference in preferences]
        texts = self.renderer.encoder.encode_all(p for one in laid if isinstance(one, PairPieces) for p in one.texts())
        return [self.fitted_or_error(one, texts) if isinstance(one, PairPieces) else one for one in laid]

    def fitted_or_error(self, laid: PairPieces, texts: dict[str, list[int]]) -> TokenizedPair | TooLong | DataError:
        """A preference whose texts are encoded; an error where the renderer cannot express its shorter prompt."""
        whole = assemble(self.renderer.encoder, laid, texts)
        if whole.longest <= self.max_length:
            return TokenizedPair(whole, whole.longest)
        if self.over_length == "drop":
            return TooLong(OVER_LENGTH, whole.longest)
        try:
            return self.cut(laid.preference, whole, dict(texts))
        except DataError as error:
            return error

    def cut(self, preference: Preference, whole: TokenPair, texts: dict[str, list[int]]) -> TokenizedPair | TooLong:
        """A pair that is too long, shortened; dropped where its prompt has no room."""
        cutter = PromptCutter(self.renderer, single(preference.sides), texts)
        smallest = cutter.length(cutter.smallest(preference.prompt))
        room = prompt_room(smallest, whole.longest - len(whole.prompt), self.max_length)
        if room is None:
            return TooLong(NO_ROOM, whole.longest)
        prompt = cutter.within(preference.prompt, room)
        laid = lay_out(self.renderer, Preference(prompt, preference.sides), self.what)
        for pieces in laid.texts():
            self.renderer.encoder.join_new(pieces, texts)
        pair = assemble(self.renderer.encoder, laid, texts)
        left = self.max_length - len(pair.prompt)
        cuts = (*prompt_cuts(preference.prompt, prompt), *side_cuts(pair.sides, left))
        sides = pair.sides.map(lambda side: CompletionTokens(side.ids[:left], side.mask[:left]))
        return TokenizedPair(
            TokenPair(pair.prompt, sides), whole.longest, cuts, None if prompt == preference.prompt else whole.prompt
        )


def fit(
    renderer: Renderer, preference: Preference, max_length: int, what: TrainOnWhat = LAST
) -> TokenizedPair | TooLong:
    """One preference within ``max_length`` tokens, cut where it is longer.

    Raises DataError when the renderer cannot express the conversation.
    """
    (fitted,) = PairTokenizer(renderer, max_length, what).fit_all([preference])
    if isinstance(fitted, DataError):
        raise fitted
    return fitted


def prompt_cuts(whole: list[Message], shorter: list[Message]) -> Iterator[str]:
    """What a shorter prompt lost."""
    if len(shorter) < len(whole):
        yield OLDER_TURNS
    if shorter[cut_message(shorter)] != whole[cut_message(whole)]:
        yield LAST_TEXT


def side_cuts(sides: Pair[CompletionTokens], length: int) -> Iterator[str]:
    """Which sides are longer than this."""
    for name, side in ((CHOSEN, sides.chosen), (REJECTED, sides.rejected)):
        if len(side.ids) > length:
            yield name


def render_pair(
    renderer: Renderer, prompt: list[Message], sides: Pair[list[Message]], what: TrainOnWhat = LAST
) -> TokenPair:
    """The prompt rendered once; each side is what a conversation has after exactly these tokens.

    Raises DataError when the renderer cannot express the conversation.
    """
    laid = lay_out(renderer, Preference(prompt, sides), what)
    return assemble(renderer.encoder, laid, renderer.encoder.encode_all(laid.texts()))


def lay_out(renderer: Renderer, preference: Preference, what: TrainOnWhat) -> PairPieces:
    """A preference in pieces.

    Where a side has several messages, what the prompt would open the first with (an empty think block) stands in the
    completions instead, for it belongs to the last message only.
    """
    prompt, sides = preference.prompt, preference.sides
    prefilled = single(sides)
    stretches = sides.map(lambda side: renderer.completion(prompt, side, what, prefilled))
    return PairPieces(preference, renderer.prompt(prompt, prefilled), stretches)


def lay_out_or_error(renderer: Renderer, preference: Preference, what: TrainOnWhat) -> PairPieces | DataError:
    """A preference in pieces, or why the renderer cannot express it."""
    try:
        return lay_out(renderer, preference, what)
    except DataError as error:
        return error


def single(sides: Pair[list[Message]]) -> bool:
    """Whether either side is one message."""
    return len(sides.chosen) == len(sides.rejected) == 1


def assemble(encoder: Encoder, laid: PairPieces, texts: dict[str, list[int]]) -> TokenPair:
    """The ids of a preference in pieces, whose texts are encoded already."""

    def complete(side: list[PieceSpan]) -> CompletionTokens:
        ids: list[int] = []
        mask: list[bool] = []
        for pieces, trained in side:
            encoded = encoder.join(pieces, texts)
            ids += encoded
            mask += [trained] * len(encoded)
        return CompletionTokens(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))

    prompt = np.array(encoder.join(laid.prompt, texts), dtype=np.int32)
    return TokenPair(prompt, laid.sides.map(complete))
