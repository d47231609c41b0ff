"""``kimi_k2``: the format of Kimi-K2-Thinking."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.render.formats.thinking import CLOSE, OPEN, read_thought, split_thought
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import ParsedResponse, Renderer

SYSTEM, USER, ASSISTANT = Marker("<|im_system|>"), Marker("<|im_user|>"), Marker("<|im_assistant|>")
MIDDLE, END = Marker("<|im_middle|>"), Marker("<|im_end|>")
ROLE_MARKERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


class KimiK2(Renderer):
    """``<|im_user|>user<|im_middle|>U<|im_end|><|im_assistant|>assistant<|im_middle|>⟦<think></think>A<|im_end|>⟧``.

    Kimi-K2-Thinking's template: it adds a default system message where there is none, and empties earlier think blocks.
    """

    name = "kimi_k2"
    markers = (SYSTEM, USER, ASSISTANT, MIDDLE, END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """The default system message, unless the conversation begins with its own."""
        if messages and messages[0]["role"] == "system":
            return ()
        return (SYSTEM, "system", MIDDLE, DEFAULT_SYSTEM, END)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text; a response after its think block, which is empty in all but the last turn."""
        role, content = messages[index]["role"], messages[index]["content"]
        header = (ROLE_MARKERS[role], role, MIDDLE)
        if role != "assistant":
            return Turn(header, (content, END))
        reasoning, response = split_thought(content)
        in_last_turn = all(message["role"] != "user" for message in messages[index:])
        return Turn(header, (OPEN, *((reasoning,) if in_last_turn and reasoning else ()), CLOSE, response, END))

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The response, and the reasoning before it."""
        reasoning, response = read_thought(self.decode(ids), gap="")
        return ParsedResponse({"role": "assistant", "content": response}, ended, reasoning)
