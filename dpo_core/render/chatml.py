"""``qwen3_instruct``: ChatML as Qwen2.5-Instruct and Qwen3-Instruct-2507 use it."""

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Marker, Pieces, Renderer, Turn

START, END = Marker("<|im_start|>"), Marker("<|im_end|>")


class Qwen3Instruct(Renderer):
    """``<|im_start|>user\\nU<|im_end|>\\n<|im_start|>assistant\\n⟦A<|im_end|>⟧``."""

    name = "qwen3_instruct"

    def opening(self) -> Pieces:
        """ChatML has no BOS."""
        return ()

    def turn(self, message: Message, index: int) -> Turn:
        """Header ``<|im_start|>role`` and a line's end, after the line's end of the message before."""
        between = ("\n",) if index else ()
        return Turn((*between, START, f"{message['role']}\n"), (message["content"], END))

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """``<|im_end|>`` and the tokenizer's EOS."""
        return super().stop_token_ids | {self.marker_id(END)}
