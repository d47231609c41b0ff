"""``role_colon``: the plain format for base models, ``User: …`` and ``Assistant: …`` between blank lines."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Renderer, Reply, Turn

STOP = "\n\nUser:"


class RoleColon(Renderer):
    """``System: S\\n\\nUser: U\\n\\nAssistant:⟦ A\\n\\nUser:⟧``: the next user's header is where an answer ends."""

    name = "role_colon"
    stop_strings = (STOP,)

    def turn(self, message: Message, index: int) -> Turn:
        """Header ``Role:``, output `` content`` and a blank line; an answer's end is completed by ``User:``."""
        overlap = ("User:",) if message["role"] == "assistant" else ()
        return Turn((f"{message['role'].capitalize()}:",), (f" {message['content']}\n\n",), overlap)

    def parse_response(self, ids: Sequence[int]) -> Reply:
        """Drop a trailing EOS, cut at the stop string, strip one leading space."""
        reply = super().parse_response(ids)
        text, stop, _ = reply.message["content"].partition(STOP)
        return Reply({"role": "assistant", "content": text.removeprefix(" ")}, reply.ended or bool(stop))
