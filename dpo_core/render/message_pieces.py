"""Pieces of a conversation before tokenization: text and special tokens, turns, and spans with a loss flag."""

from typing import NamedTuple


class Marker(str):
    """The text of a special token; plain ``str`` pieces can never become one."""

    __slots__ = ()


class Tag(str):
    """A format's tag, as ``<think>``: one token where the tokenizer has it, else its letters."""

    __slots__ = ()


class TemplateText(str):
    """Text of a chat template, in which special tokens are recognized; never a message's text."""

    __slots__ = ()


Pieces = tuple[str, ...]


class Turn(NamedTuple):
    """One message in parts that are tokenized separately, so that no merge crosses between them.

    ``header`` is not trained, ``output`` is. ``prefill`` begins the output of a message to be generated; it is given
    to the model, not trained. ``overlap`` completes the end marker of the conversation's last message, where otherwise
    the next header does.
    """

    header: Pieces
    output: Pieces
    overlap: Pieces = ()
    prefill: Pieces = ()


class PieceSpan(NamedTuple):
    """Pieces that are all trained, or all not trained."""

    pieces: Pieces
    trained: bool
