"""Tokenization of preference pairs to at most ``max_length`` tokens, with truncation of prompts and responses."""

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
    """A token pair within ``max_length``.

    ``longest``: tokens of the longer full sequence before truncation. ``cuts``: the parts that were cut, of CUTS.
    ``whole_prompt``: the prompt's ids (P,) int32 before truncation, None where it was not cut.
    """

    pair: TokenPair
    longest: int
    cuts: tuple[str, ...] = ()
    whole_prompt: Ids | None = None

    @property
    def truncated(self) -> bool:
        """Whether any part was cut."""
        return bool(self.cuts)


@dataclass(frozen=True, slots=True)
class TooLong:
    """A pair that is dropped for its length: the cause, and the tokens of its longer full sequence."""

    cause: str
    longest: int


@dataclass(frozen=True, slots=True)
class PairPieces:
    """A preference in pieces: the prompt's pieces, and the spans of each completion."""

    preference: Preference
    prompt: Pieces
    sides: Pair[list[PieceSpan]]

    def texts(self) -> Iterator[Pieces]:
        """The pieces of the prompt and of every span."""
        yield self.prompt
        for side in (self.sides.chosen, self.sides.rejected):
            yield from (span.pieces for span in side)


class PairTokenizer:
    """Renders preferences within ``max_length`` tokens.

    Longer ones are dropped (``over_length="drop"``) or cut. Then whole oldest turns of the prompt go first, then the
    beginning of its last user's text (:mod:`dpo_core.render.truncation`); headers stay whole. Responses are cut
    last, at their end, and so lose the end-of-turn token. A pair without room for its prompt is dropped.
    """

    def __init__(
        self, renderer: Renderer, max_length: int, train_on_what: TrainOnWhat = LAST, over_length: OverLength = "cut"
    ) -> None:
        self.renderer, self.max_length, self.train_on_what, self.over_length = (
            renderer,
            max_length,
            train_on_what,
            over_length,
        )

    def tokenize_all(self, preferences: Sequence[Preference]) -> list[TokenizedPair | TooLong | DataError]:
        """Tokenize all preferences in one batch; a DataError stands for one that the renderer cannot express."""
        items = [lay_out_or_error(self.renderer, preference, self.train_on_what) for preference in preferences]
        texts = self.renderer.encoder.encode_plain(
            pieces for item in items if isinstance(item, PairPieces) for pieces in item.texts()
        )
        return [self.truncate_or_error(item, texts) if isinstance(item, PairPieces) else item for item in items]

    def truncate_or_error(
        self, pair_pieces: PairPieces, texts: dict[str, list[int]]
    ) -> TokenizedPair | TooLong | DataError:
        """A preference with encoded texts, truncated; a DataError if the renderer cannot express its shorter prompt."""
        full = assemble(self.renderer.encoder, pair_pieces, texts)
        if full.longest <= self.max_length:
            return TokenizedPair(full, full.longest)
        if self.over_length == "drop":
            return TooLong(OVER_LENGTH, full.longest)
        try:
            return self.cut(pair_pieces.preference, full, dict(texts))
        except DataError as error:
            return error

    def cut(self, preference: Preference, full: TokenPair, texts: dict[str, list[int]]) -> TokenizedPair | TooLong:
        """Truncate a pair that is too long; TooLong where its prompt has no room."""
        cutter = PromptCutter(self.renderer, single_messages(preference.sides), texts)
        smallest = cutter.length(cutter.smallest(preference.prompt))
        room = prompt_room(smallest, full.longest - len(full.prompt), self.max_length)
        if room is None:
            return TooLong(NO_ROOM, full.longest)
        prompt = cutter.truncate(preference.prompt, room)
        pair_pieces = lay_out(self.renderer, Preference(prompt, preference.sides), self.train_on_what)
        for pieces in pair_pieces.texts():
            self.renderer.encoder.join_with_cache(pieces, texts)
        pair = assemble(self.renderer.encoder, pair_pieces, texts)
        completion_room = self.max_length - len(pair.prompt)
        cuts = (*prompt_cuts(preference.prompt, prompt), *side_cuts(pair.sides, completion_room))
        sides = pair.sides.map(lambda side: CompletionTokens(side.ids[:completion_room], side.mask[:completion_room]))
        return TokenizedPair(
            TokenPair(pair.prompt, sides), full.longest, cuts, None if prompt == preference.prompt else full.prompt
        )


def tokenize_pair(
    renderer: Renderer, preference: Preference, max_length: int, train_on_what: TrainOnWhat = LAST
) -> TokenizedPair | TooLong:
    """Tokenize one preference to at most ``max_length`` tokens, cut where it is longer.

    Raises DataError when the renderer cannot express the conversation.
    """
    (result,) = PairTokenizer(renderer, max_length, train_on_what).tokenize_all([preference])
    if isinstance(result, DataError):
        raise result
    return result


def prompt_cuts(full: list[Message], shorter: list[Message]) -> Iterator[str]:
    """The parts that a shorter prompt lost, of CUTS."""
    if len(shorter) < len(full):
        yield OLDER_TURNS
    if shorter[cut_message(shorter)] != full[cut_message(full)]:
        yield LAST_TEXT


def side_cuts(sides: Pair[CompletionTokens], length: int) -> Iterator[str]:
    """The completions with more than ``length`` tokens, of CUTS."""
    for name, side in ((CHOSEN, sides.chosen), (REJECTED, sides.rejected)):
        if len(side.ids) > length:
            yield name


def render_pair(
    renderer: Renderer, prompt: list[Message], sides: Pair[list[Message]], train_on_what: TrainOnWhat = LAST
) -> TokenPair:
    """The token pair of a preference, without truncation. The prompt is rendered once, for both completions.

    Raises DataError when the renderer cannot express the conversation.
    """
    pair_pieces = lay_out(renderer, Preference(prompt, sides), train_on_what)
    return assemble(renderer.encoder, pair_pieces, renderer.encoder.encode_plain(pair_pieces.texts()))


def lay_out(renderer: Renderer, preference: Preference, train_on_what: TrainOnWhat) -> PairPieces:
    """A preference in pieces.

    Where a side has several messages, the prefill of its first message (an empty think block) is in the completions,
    not in the prompt, because it belongs to the last message only.
    """
    prompt, sides = preference.prompt, preference.sides
    prefilled = single_messages(sides)
    spans = sides.map(lambda side: renderer.completion(prompt, side, train_on_what, prefilled))
    return PairPieces(preference, renderer.prompt(prompt, prefilled), spans)


def lay_out_or_error(renderer: Renderer, preference: Preference, train_on_what: TrainOnWhat) -> PairPieces | DataError:
    """A preference in pieces, or the DataError why the renderer cannot express it."""
    try:
        return lay_out(renderer, preference, train_on_what)
    except DataError as error:
        return error


def single_messages(sides: Pair[list[Message]]) -> bool:
    """Whether both sides are single messages."""
    return len(sides.chosen) == len(sides.rejected) == 1


def assemble(encoder: Encoder, pair_pieces: PairPieces, texts: dict[str, list[int]]) -> TokenPair:
    """The token pair of a preference in pieces; ``texts`` has the ids of every plain text."""

    def complete(side: list[PieceSpan]) -> CompletionTokens:
        ids: list[int] = []
        mask: list[bool] = []
        for pieces, trained in side:
            encoded = encoder.join(pieces, texts)
            ids += encoded
            mask += [trained] * len(encoded)
        return CompletionTokens(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))

    prompt = np.array(encoder.join(pair_pieces.prompt, texts), dtype=np.int32)
    return TokenPair(prompt, pair_pieces.sides.map(complete))
