"""``deepseekv3``: DeepSeek-V3.1's format without thinking."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.errors import DataError
from dpo_core.render.formats.thinking import CLOSE
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import Renderer

BEGIN, END = Marker("<｜begin▁of▁sentence｜>"), Marker("<｜end▁of▁sentence｜>")
USER, ASSISTANT = Marker("<｜User｜>"), Marker("<｜Assistant｜>")


class DeepSeekV3(Renderer):
    """``<｜begin▁of▁sentence｜>S<｜User｜>U<｜Assistant｜></think>⟦A<｜end▁of▁sentence｜>⟧``.

    DeepSeek-V3.1's template, ``thinking=False``: ``</think>`` begins every response, and reasoning is left out.
    """

    name = "deepseekv3"
    markers = (BEGIN, END, USER, ASSISTANT)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Every conversation begins with ``<｜begin▁of▁sentence｜>``."""
        return (BEGIN,)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text after its role's token; system messages come first, without one.

        Raises DataError for a system message after another role's.
        """
        role, content = messages[index]["role"], messages[index]["content"]
        if role == "user":
            return Turn((USER,), (content,))
        if role == "assistant":
            return Turn((ASSISTANT, CLOSE), (content.partition(CLOSE)[2] if CLOSE in content else content, END))
        if any(message["role"] != "system" for message in messages[:index]):
            rule = "deepseekv3 allows system messages at the start only."
            raise DataError(f"Message {index + 1} is a system message.", rule, "Use another renderer_name.")
        return Turn((), ("\n\n" + content if index else content,))
