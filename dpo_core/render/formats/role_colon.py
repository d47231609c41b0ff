"""``role_colon``: the plain format for base models, ``User: …`` and ``Assistant: …`` between blank lines."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.render.message_pieces import Turn
from dpo_core.render.renderer import ParsedResponse, Renderer

STOP = "\n\nUser:"


class RoleColon(Renderer):
    """``System: S\\n\\nUser: U\\n\\nAssistant:⟦ A\\n\\nUser:⟧``: the next user's header ends a response."""

    name = "role_colon"
    stop_strings = (STOP,)

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """Header ``Role:``, output `` content`` and a blank line; ``User:`` completes the end of a response."""
        role, content = messages[index]["role"], messages[index]["content"]
        overlap = ("User:",) if role == "assistant" else ()
        return Turn((f"{role.capitalize()}:",), (f" {content}\n\n",), overlap)

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The text up to the stop string, without one leading space."""
        text, stop, _ = self.decode(ids).partition(STOP)
        return ParsedResponse({"role": "assistant", "content": text.removeprefix(" ")}, ended or bool(stop))
