"""What conversations are laid out in before they are tokens: pieces of text, turns of pieces, stretches of turns."""

from typing import NamedTuple


class Marker(str):
    """The text of a special token; plain ``str`` pieces can never become one."""

    __slots__ = ()


class Tag(str):
    """A format's own tag, as ``<think>``: one token where the tokenizer has it, its letters otherwise."""

    __slots__ = ()


class TemplateText(str):
    """Text that a template wrote, in which special tokens count as such; never a message's text."""

    __slots__ = ()


Pieces = tuple[str, ...]


class Turn(NamedTuple):
    """One message in parts that are tokenised on their own, so that no merge crosses between them.

    ``prefill`` opens the output of a message to be generated, and is given to the model rather than learnt.
    ``overlap`` completes the end marker of a conversation's last message where the next header would have done so.
    """

    header: Pieces
    output: Pieces
    overlap: Pieces = ()
    prefill: Pieces = ()


class PieceSpan(NamedTuple):
    """Pieces that are all trained, or all not."""

    pieces: Pieces
    trained: bool
