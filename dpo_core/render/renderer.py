"""The protocol of renderers: a conversation is a sequence of headers (never trained) and outputs (content and end)."""

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

TO_COME: Message = {"role": "assistant", "content": ""}


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and, for each, whether it is trained (1) or not (0)."""

    ids: list[int]
    weights: list[int]


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A generated message; ``ended`` is false when it was cut off before its end.

    ``thinking`` is the reasoning before it, in formats that have any.
    """

    message: Message
    ended: bool
    thinking: str = ""


class Renderer(ABC):
    """Conversations to token ids, and generated ids back to a message.

    A new format is a subclass with ``name``, the special tokens it needs as ``markers``, those that end a reply as
    ``stops``, and :meth:`turn`.
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
        """The ``index``-th of these messages.

        Raises DataError when the format cannot express it. Parts before a message's output must not depend on it.
        """

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turn]:
        """The messages of a conversation from the ``start``-th on."""
        return [self.turn(messages, index) for index in range(start, len(messages))]

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """What stands before the first message: the BOS token where the tokenizer has one."""
        bos = self.tokenizer.bos_token
        return (Marker(bos),) if isinstance(bos, str) else ()

    def prompt(self, messages: Sequence[Message], prefilled: bool = True) -> Pieces:
        """The pieces after which the assistant's next output begins; ``prefilled`` without what opens that output."""
        *told, coming = self.turns([*messages, TO_COME])
        pieces = self.opening([*messages, TO_COME])
        for turn in told:
            pieces += turn.header + turn.prefill + turn.output
        return pieces + coming.header + (coming.prefill if prefilled else ())

    def completion(
        self, prompt: Sequence[Message], side: Sequence[Message], what: TrainOnWhat, prefilled: bool = True
    ) -> list[PieceSpan]:
        """What a conversation has after ``prompt(prompt, prefilled)``, when ``side`` follows.

        ``what`` is asked of the side's messages: the prompt's are the same on both sides, and not here.
        """
        trained = trained_messages(side, what)
        first, *rest = self.turns([*prompt, *side], len(prompt))
        stretches = [] if prefilled else [PieceSpan(first.prefill, False)]
        stretches.append(PieceSpan(first.output, trained[0]))
        for turn, is_trained in zip(rest, trained[1:], strict=True):
            stretches.append(PieceSpan(turn.header + turn.prefill, what == "all_tokens"))
            stretches.append(PieceSpan(turn.output, is_trained))
        return [*stretches, PieceSpan([first, *rest][-1].overlap, trained[-1])]

    def conversation(self, messages: Sequence[Message], what: TrainOnWhat) -> list[PieceSpan]:
        """A whole conversation, to be trained on as ``what`` says. What stands before the first message never is."""
        stretches, turns = [PieceSpan(self.opening(messages), False)], self.turns(messages)
        for turn, trained in zip(turns, trained_messages(messages, what), strict=True):
            stretches.append(PieceSpan(turn.header + turn.prefill, what == "all_tokens"))
            stretches.append(PieceSpan(turn.output, trained))
        return [*stretches, PieceSpan(turns[-1].overlap, stretches[-1].trained)] if turns else stretches

    def build_supervised_example(self, messages: Sequence[Message], train_on_what: TrainOnWhat = LAST) -> Example:
        """The conversation as tokens, and which of them are trained; by default the last assistant message's output.

        Raises DataError for a conversation that the format cannot express.
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
        """Tokens that end a reply: the tokenizer's EOS, and the renderer's own end markers."""
        eos = self.tokenizer.eos_token_id
        own = [self.encoder.marker_id(stop) for stop in self.stops]
        return frozenset([*own, eos] if isinstance(eos, int) else own)

    def parse_response(self, ids: Sequence[int]) -> ParsedResponse:
        """The message in generated ids, stop token included or not."""
        stop = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None)
        return self.read(ids[:stop], stop is not None)

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The message in generated ids without their stop token."""
        return ParsedResponse({"role": "assistant", "content": self.decode(ids)}, ended)

    def marker_id(self, marker: str) -> int:
        """The id of a special token; raises RecipeError when the tokenizer does not have it."""
        return self.encoder.marker_id(marker)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out, spaces untouched."""
        return self.encoder.decode(ids)
