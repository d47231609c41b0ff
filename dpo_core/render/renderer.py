"""The protocol of renderers: a conversation is a sequence of headers (never trained) and outputs (content and end)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from dpo_core.data.preference import Message
from dpo_core.errors import RecipeError

ANCHOR = "\n"
REMEMBERED = 4096


class Marker(str):
    """The text of a special token; plain ``str`` pieces can never become one."""

    __slots__ = ()


Pieces = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message in parts that are tokenised on their own, so that no merge crosses between them.

    ``overlap`` completes the end marker of a conversation's last message where the next header would have done so.
    """

    header: Pieces
    output: Pieces
    overlap: Pieces = ()


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and, for each, whether it is trained (1) or not (0)."""

    ids: list[int]
    weights: list[int]


@dataclass(frozen=True, slots=True)
class Reply:
    """A generated message; ``ended`` is false when it was cut off before its end."""

    message: Message
    ended: bool


class Renderer(ABC):
    """Conversations to token ids, and generated ids back to a message."""

    name: str
    stop_strings: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # A prompt is met three times, alone and before each side, and headers in every conversation.
        self.remembered = lru_cache(REMEMBERED)(self.encode_text)

    @abstractmethod
    def turn(self, message: Message, index: int) -> Turn:
        """The ``index``-th message of a conversation."""

    def opening(self) -> Pieces:
        """What stands before the first message: the BOS token where the tokenizer has one."""
        bos = self.tokenizer.bos_token
        return (Marker(bos),) if isinstance(bos, str) else ()

    def build_supervised_example(self, messages: Sequence[Message]) -> Example:
        """The conversation as tokens, only the last assistant message's output trained."""
        ids = self.encode(self.opening())
        weights = [0] * len(ids)
        last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        for index, message in enumerate(messages):
            turn = self.turn(message, index)
            header, output = self.encode(turn.header), self.encode(turn.output)
            output += self.encode(turn.overlap) if index == len(messages) - 1 else []
            ids += header + output
            weights += [0] * len(header) + [int(index == last)] * len(output)
        return Example(ids, weights)

    def build_generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which the assistant's next output begins."""
        ids = self.encode(self.opening())
        for index, message in enumerate(messages):
            turn = self.turn(message, index)
            ids += self.encode(turn.header) + self.encode(turn.output)
        return ids + self.encode(self.turn({"role": "assistant", "content": ""}, len(messages)).header)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the tokenizer's EOS, and the renderer's own end marker."""
        eos = self.tokenizer.eos_token_id
        return frozenset([eos] if isinstance(eos, int) else [])

    def parse_response(self, ids: Sequence[int]) -> Reply:
        """The message in generated ids, stop token included or not."""
        stops = [index for index, token in enumerate(ids) if token in self.stop_token_ids]
        text = self.decode(ids[: stops[0]] if stops else ids)
        return Reply({"role": "assistant", "content": text}, bool(stops))

    def encode(self, pieces: Pieces) -> list[int]:
        """Markers become their one token; other text is tokenised with special tokens switched off."""
        ids: list[int] = []
        for piece in pieces:
            ids += [self.marker_id(piece)] if isinstance(piece, Marker) else self.remembered(piece)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text, none of them special, whatever it says."""
        return self.plain_ids(ANCHOR + text)[len(self.plain_ids(ANCHOR)) :] if self.adds_space else self.plain_ids(text)

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text (SentencePiece's dummy prefix).

        Parts of a conversation are tokenised on their own, and would each get one; behind an anchor they do not.
        """
        return self.decode(self.plain_ids("a") + self.plain_ids("b")) != "ab"

    def plain_ids(self, text: str) -> list[int]:
        """The tokenizer's ids for a text, special tokens switched off."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def marker_id(self, marker: str) -> int:
        """The id of a special token.

        Raises RecipeError when the tokenizer does not have it.
        """
        index = self.vocabulary.get(str(marker))
        if index is None:
            raise RecipeError(
                f"The tokenizer of {self.tokenizer.name_or_path} has no token {marker}.",
                f"The renderer {self.name} needs it.",
                "Choose another renderer_name (role_colon needs no special tokens).",
            )
        return index

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id; made once, for a tokenizer makes it anew at each call."""
        return dict(self.tokenizer.get_vocab())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out, spaces untouched."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
