"""``llama3``: the format of Llama-3.x-Instruct."""

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Marker, Pieces, Renderer, Turn

BEGIN, END = Marker("<|begin_of_text|>"), Marker("<|eot_id|>")
HEADER_START, HEADER_END = Marker("<|start_header_id|>"), Marker("<|end_header_id|>")


class Llama3(Renderer):
    """``<|start_header_id|>user<|end_header_id|>\\n\\nU<|eot_id|>``, content stripped as the shipped template does."""

    name = "llama3"

    def opening(self) -> Pieces:
        """Every conversation begins with ``<|begin_of_text|>``."""
        return (BEGIN,)

    def turn(self, message: Message, index: int) -> Turn:
        """The header is the role between its markers and a blank line."""
        return Turn((HEADER_START, message["role"], HEADER_END, "\n\n"), (message["content"].strip(), END))

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """``<|eot_id|>`` and the tokenizer's EOS."""
        return super().stop_token_ids | {self.marker_id(END)}
