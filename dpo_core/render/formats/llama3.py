"""``llama3``: the format of Llama-3.x-Instruct."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import Renderer

BEGIN, END = Marker("<|begin_of_text|>"), Marker("<|eot_id|>")
HEADER_START, HEADER_END = Marker("<|start_header_id|>"), Marker("<|end_header_id|>")


class Llama3(Renderer):
    """``<|start_header_id|>user<|end_header_id|>\\n\\nU<|eot_id|>``, content stripped as the shipped template does.

    Llama-3's template; those of 3.1 and later also write a knowledge cut-off and a date into the system message.
    """

    name = "llama3"
    markers = (BEGIN, END, HEADER_START, HEADER_END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Every conversation begins with ``<|begin_of_text|>``."""
        return (BEGIN,)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text; the header is the role between its markers, and a blank line."""
        role, content = messages[index]["role"], messages[index]["content"]
        return Turn((HEADER_START, role, HEADER_END, "\n\n"), (content.strip(), END))
