"""``gpt_oss_no_sysprompt``: OpenAI's harmony format without its system message."""

from collections.abc import Sequence

from dpo_core.data.preference import Message
from dpo_core.render.message_pieces import Marker, Pieces, Turn
from dpo_core.render.renderer import ParsedResponse, Renderer

START, MESSAGE, CHANNEL = Marker("<|start|>"), Marker("<|message|>"), Marker("<|channel|>")
END, RETURN, CALL = Marker("<|end|>"), Marker("<|return|>"), Marker("<|call|>")


class GptOss(Renderer):
    """``<|start|>user<|message|>U<|end|><|start|>assistant⟦<|channel|>final<|message|>A<|return|>⟧``.

    The template of gpt-oss-20b and -120b, without its first system message (date and reasoning
    effort); a conversation's system message is the developer's.
    """

    name = "gpt_oss_no_sysprompt"
    markers = (START, MESSAGE, CHANNEL, END, RETURN, CALL)
    stops = (RETURN, CALL)

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Harmony has no BOS."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The message's text; responses go to the final channel, and the last one ends in ``<|return|>``."""
        role, content = messages[index]["role"], messages[index]["content"]
        if role == "assistant":
            end = RETURN if index == len(messages) - 1 else END
            return Turn((START, "assistant"), (CHANNEL, "final", MESSAGE, content, end))
        if role == "user":
            return Turn((START, "user"), (MESSAGE, content, END))
        if not content:
            return Turn((), ())
        return Turn((START, "developer"), (MESSAGE, f"# Instructions\n\n{content}\n\n", END))

    def read(self, ids: Sequence[int], ended: bool) -> ParsedResponse:
        """The final channel's text as the message, the analysis channel's as thinking."""
        channels = {"final": "", "analysis": ""}
        for part in split_at(ids, self.marker_id(END)):
            head, *texts = split_at(part, self.marker_id(MESSAGE))
            channel = "final" if not texts or "analysis" not in self.decode(head) else "analysis"
            channels[channel] += self.decode([token for text in texts or [head] for token in text])
        return ParsedResponse({"role": "assistant", "content": channels["final"]}, ended, channels["analysis"])


def split_at(ids: Sequence[int], token: int) -> list[list[int]]:
    """The lists of ids between occurrences of ``token``."""
    runs: list[list[int]] = [[]]
    for index in ids:
        if index == token:
            runs.append([])
        else:
            runs[-1].append(index)
    return runs
