"""``gemma`` and ``mistral``: user and assistant alternate, the system message is part of a user's message."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.errors import DataError
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import ParsedResponse, Renderer

TURN_START, TURN_END, GEMMA_BEGIN = Marker("<start_of_turn>"), Marker("<end_of_turn>"), Marker("<bos>")
BEGIN, END, INST, INST_END = Marker("<s>"), Marker("</s>"), Marker("[INST]"), Marker("[/INST]")


class Gemma(Renderer):
    """``<bos><start_of_turn>user\\nS\\n\\nU<end_of_turn>\\n<start_of_turn>model\\n⟦A<end_of_turn>⟧``.

    Gemma 3's template, which equals Gemma's and Gemma 2's where those can express the conversation (they refuse system
    messages): texts stripped, the system message before the first user's.
    """

    name = "gemma"
    markers = (GEMMA_BEGIN, TURN_START, TURN_END)
    stops = (TURN_END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Every conversation begins with ``<bos>``."""
        return (GEMMA_BEGIN,)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """A role's text between its markers; the system message is part of the first user's turn."""
        check_alternating(self.name, messages)
        role, content = messages[index]["role"], messages[index]["content"].strip()
        if role == "system":
            return Turn((), ())
        first = int(messages[0]["role"] == "system")
        system = f"{messages[0]['content']}\n\n" if first and index == first else ""
        newline = () if index == first else ("\n",)
        name = "model" if role == "assistant" else role
        return Turn((*newline, TURN_START, f"{name}\n"), (system + content, TURN_END))


class Mistral(Renderer):
    """``<s>[INST] S\\n\\nU[/INST]⟦ A</s>⟧``.

    The V3 SentencePiece format (Mistral-7B-Instruct-v0.3, Mixtral-8x22B-Instruct, Mistral-Large-2407): the system
    message before the last user's, responses stripped. The Tekken models (Nemo and later) write no spaces.
    """

    name = "mistral"
    markers = (BEGIN, END, INST, INST_END)
    stops = (END,)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Every conversation begins with ``<s>``."""
        return (BEGIN,)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """A user's text between its markers, or a response; nothing for the system message."""
        check_alternating(self.name, messages)
        role, content = messages[index]["role"], messages[index]["content"]
        if role == "system":
            return Turn((), ())
        if role == "assistant":
            return Turn((), (f" {content.strip()}", END))
        last = all(message["role"] != "user" for message in messages[index + 1 :])
        system = f"{messages[0]['content']}\n\n" if last and messages[0]["role"] == "system" else ""
        return Turn((INST,), (f" {system}{content}", INST_END))

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The response without its leading space."""
        return ParsedResponse({"role": "assistant", "content": self.decode(ids).removeprefix(" ")}, ended)


def check_alternating(name: str, messages: Sequence[Message]) -> None:
    """Raises DataError unless, after an optional system message, user and assistant alternate, the user first."""
    first = int(bool(messages) and messages[0]["role"] == "system")
    for number, message in enumerate(messages[first:]):
        if message["role"] != ("assistant" if number % 2 else "user"):
            raise DataError(
                f"Message {first + number + 1} of a conversation is the {message['role']}'s.",
                f"In the format {name} user and assistant alternate, after at most one system message.",
                "Use another renderer_name, or leave such conversations out.",
            )
