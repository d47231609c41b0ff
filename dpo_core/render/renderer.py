"""Renderer protocol: a conversation is a sequence of headers (not trained) and outputs (content and end marker)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from dpo_core.config.recipe import TrainOnWhat
from dpo_core.data.preference import Message
from dpo_core.render.encoder import Encoder
from dpo_core.render.message_pieces import Marker, Pieces, PieceSpan, Turn
from dpo_core.render.train_on_what import LAST, trained_messages

NEXT_MESSAGE: Message = {"role": "assistant", "content": ""}


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a conversation and their loss weights: 1 where trained, else 0."""

    ids: list[int]
    weights: list[int]


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A generated message. ``ended`` is False when it was cut off before its end marker.

    ``thinking``: the reasoning before the message, in formats that have it.
    """

    message: Message
    ended: bool
    thinking: str = ""


class Renderer(ABC):
    """Renders conversations to token ids, and parses generated ids to a message.

    A new format is a subclass with ``name``, ``markers`` (the special tokens that it needs), ``stops`` (those that end
    a response) and :meth:`turn`.
    """

    name: str
    markers: tuple[Marker, ...] = ()
    stops: tuple[Marker, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, self.name, self.markers)

    @abstractmethod
    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The pieces of the message at ``index``.

        Nothing before a message's output may depend on this output. Raises DataError when the format cannot express
        the conversation.
        """

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turn]:
        """The turns of a conversation from the message at ``start`` on."""
        return [self.turn(messages, index) for index in range(start, len(messages))]

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """The pieces before the first message: the BOS token where the tokenizer has one."""
        bos = self.tokenizer.bos_token
        return (Marker(bos),) if isinstance(bos, str) else ()

    def prompt(self, messages: Sequence[Message], prefilled: bool = True) -> Pieces:
        """The pieces of the generation prompt; with ``prefilled``, they include the prefill of the next output."""
        *turns, next_turn = self.turns([*messages, NEXT_MESSAGE])
        pieces = self.opening([*messages, NEXT_MESSAGE])
        for turn in turns:
            pieces += turn.header + turn.prefill + turn.output
        return pieces + next_turn.header + (next_turn.prefill if prefilled else ())

    def completion(
        self, prompt: Sequence[Message], side: Sequence[Message], what: TrainOnWhat, prefilled: bool = True
    ) -> list[PieceSpan]:
        """The spans of the completion ``side`` after ``prompt(prompt, prefilled)``.

        ``what`` (train_on_what) applies to the messages of ``side`` only; the prompt is never trained here.
        """
        trained = trained_messages(side, what)
        first, *rest = self.turns([*prompt, *side], len(prompt))
        spans = [] if prefilled else [PieceSpan(first.prefill, False)]
        spans.append(PieceSpan(first.output, trained[0]))
        for turn, is_trained in zip(rest, trained[1:], strict=True):
            spans.append(PieceSpan(turn.header + turn.prefill, what == "all_tokens"))
            spans.append(PieceSpan(turn.output, is_trained))
        return [*spans, PieceSpan([first, *rest][-1].overlap, trained[-1])]

    def conversation(self, messages: Sequence[Message], what: TrainOnWhat) -> list[PieceSpan]:
        """The spans of a whole conversation, trained by ``what`` (train_on_what); the opening is never trained."""
        spans, turns = [PieceSpan(self.opening(messages), False)], self.turns(messages)
        for turn, trained in zip(turns, trained_messages(messages, what), strict=True):
            spans.append(PieceSpan(turn.header + turn.prefill, what == "all_tokens"))
            spans.append(PieceSpan(turn.output, trained))
        return [*spans, PieceSpan(turns[-1].overlap, spans[-1].trained)] if turns else spans

    def build_supervised_example(self, messages: Sequence[Message], train_on_what: TrainOnWhat = LAST) -> Example:
        """Token ids and loss weights of a conversation; by default the last assistant message's output is trained.

        Raises DataError when the format cannot express the conversation.
        """
        ids: list[int] = []
        weights: list[int] = []
        for pieces, trained in self.conversation(messages, train_on_what):
            encoded = self.encoder.encode(pieces)
            ids += encoded
            weights += [int(trained)] * len(encoded)
        return Example(ids, weights)

    def build_generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which the assistant's next output begins.

        Raises DataError for a conversation that the format cannot express.
        """
        return self.encoder.encode(self.prompt(messages))

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids of the tokens that end a response: the tokenizer's EOS, and the renderer's ``stops``."""
        eos = self.tokenizer.eos_token_id
        own = [self.encoder.marker_id(stop) for stop in self.stops]
        return frozenset([*own, eos] if isinstance(eos, int) else own)

    def parse_response(self, ids: Sequence[int]) -> ParsedResponse:
        """Parse the message in generated ids, with or without a stop token."""
        stop = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None)
        return self.read(ids[:stop], stop is not None)

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """Parse the message in generated ids without their stop token."""
        return ParsedResponse({"role": "assistant", "content": self.decode(ids)}, ended)

    def marker_id(self, marker: str) -> int:
        """The id of a special token; raises RecipeError when the tokenizer does not have it."""
        return self.encoder.marker_id(marker)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, white space unchanged."""
        return self.encoder.decode(ids)
