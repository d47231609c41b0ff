"""ChatML: ``qwen3_instruct`` (Qwen2.5-Instruct, Qwen3-Instruct-2507), and Qwen3 with and without thinking."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.errors import DataError
from dpo_core.render.formats.thinking import CLOSE, OPEN, last_query, read_thought, split_thought
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import ParsedResponse, Renderer

START, END = Marker("<|im_start|>"), Marker("<|im_end|>")
NOT_THINKING = (OPEN, "\n\n", CLOSE, "\n\n")


class Qwen3Instruct(Renderer):
    """``<|im_start|>user\\nU<|im_end|>\\n<|im_start|>assistant\\n⟦A<|im_end|>⟧``.

    Qwen2.5's template adds a system message where there is none; this renderer adds nothing.
    """

    name = "qwen3_instruct"
    markers = (START, END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """ChatML has no BOS."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text between its markers."""
        return Turn(header(messages, index), (messages[index]["content"], END))


class Qwen3(Renderer):
    """``…<|im_start|>assistant\\n⟦<think>\\n\\n</think>\\n\\nA<|im_end|>⟧``: Qwen3's template, thinking enabled.

    Only the last turn has a think block; those of earlier turns are left out, as in the template.
    """

    name = "qwen3"
    markers = (START, END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """ChatML has no BOS."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text; an assistant's reasoning before it where the template keeps it."""
        conversation = list(messages)
        if conversation[index]["role"] != "assistant":
            return Turn(header(conversation, index), (conversation[index]["content"], END))
        reasoning, response = split_thought(conversation[index]["content"])
        if index > last_query(conversation) and (index == len(conversation) - 1 or reasoning):
            output = (OPEN, f"\n{reasoning}\n", CLOSE, "\n\n" + response.lstrip("\n"), END)
            return Turn(header(conversation, index), output)
        return Turn(header(conversation, index), (response, END))

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The response, and the reasoning before it."""
        reasoning, response = read_thought(self.decode(ids))
        return ParsedResponse({"role": "assistant", "content": response}, ended, reasoning)


class Qwen3DisableThinking(Renderer):
    """``…assistant\\n<think>\\n\\n</think>\\n\\n⟦A<|im_end|>⟧``: Qwen3's template with ``enable_thinking=False``."""

    name = "qwen3_disable_thinking"
    markers = (START, END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """ChatML has no BOS."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text; an empty think block is the prefill of the last response.

        Raises DataError for a response with reasoning.
        """
        conversation = list(messages)
        if conversation[index]["role"] != "assistant":
            return Turn(header(conversation, index), (conversation[index]["content"], END))
        reasoning, response = split_thought(conversation[index]["content"])
        if index < last_query(conversation) or (index < len(conversation) - 1 and not reasoning):
            return Turn(header(conversation, index), (response, END))
        if reasoning:
            found, rule = f"Message {index + 1} reasons before it answers.", "qwen3_disable_thinking has no reasoning."
            raise DataError(found, rule, "Use renderer_name=qwen3, or leave the reasoning out.")
        return Turn(header(conversation, index), (response.lstrip("\n"), END), prefill=NOT_THINKING)


def header(messages: Sequence[Message], index: int) -> Pieces:
    """``<|im_start|>role`` and a newline; after the newline of the previous message, if any."""
    newline = ("\n",) if index else ()
    return (*newline, START, f"{messages[index]['role']}\n")
