"""``chat_template``: any other model, through the template that its tokenizer ships."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError

from dpo_core.data.preference import Message
from dpo_core.errors import DataError, RecipeError
from dpo_core.render.message_pieces import Pieces, TemplateText, Turn
from dpo_core.render.renderer import Renderer

# A placeholder for a message's text, between white space that a template which strips the text takes away.
HOLDER = "\x1f\ue000{}\ue001\x1f"
HELD = re.compile("(\x1f?)\ue000(\\d+)\ue001(\x1f?)")


class Written(NamedTuple):
    """What a template wrote: its own texts, and between them the messages' (as it leaves them)."""

    own: list[str]
    texts: list[str]


class ChatTemplate(Renderer):
    """The template is rendered around placeholders, so that message text never meets the template's special tokens."""

    name = "chat_template"

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """The template writes its own."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """One of the messages that the template wrote together."""
        return self.turns(messages)[index]

    def prompt(self, messages: Sequence[Message], prefilled: bool = True) -> Pieces:
        """The template's own generation prompt."""
        written = self.write(messages, generation=True)
        pieces: Pieces = (TemplateText(written.own[0]),)
        for text, own in zip(written.texts, written.own[1:], strict=True):
            pieces += (text, TemplateText(own))
        return pieces

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turn]:
        """A message's output is its text up to the end marker behind it; the last answer's begins after the prompt.

        Raises RecipeError where answers do not follow the generation prompt, DataError for a conversation that the
        template refuses or rewrites.
        """
        written = self.write(messages, generation=False)
        behind = [self.split_end(own) for own in written.own[1:]]
        headers = [written.own[0], *(after for _, after in behind[:-1])]
        openings = [""] * len(headers)
        if messages[-1]["role"] == "assistant":
            openings[-1] = self.opens(messages, written)
            headers[-1] = headers[-1].removesuffix(openings[-1])
        return [
            Turn((TemplateText(header),), (TemplateText(opening), text, TemplateText(end)))
            for header, opening, text, (end, _) in zip(headers, openings, written.texts, behind, strict=True)
        ][start:]

    def opens(self, messages: Sequence[Message], written: Written) -> str:
        """What the template writes between the generation prompt and the last message's text.

        Raises RecipeError when the conversation does not begin with that prompt.
        """
        prompt = self.write(messages[:-1], generation=True)
        before = (written.own[:-2], written.texts[:-1])
        if (prompt.own[:-1], prompt.texts) == before and written.own[-2].startswith(prompt.own[-1]):
            return written.own[-2].removeprefix(prompt.own[-1])
        raise RecipeError(
            f"In the chat template of {self.tokenizer.name_or_path} answers do not follow the generation prompt.",
            "The prompt's tokens must be the beginning of the conversation's.",
            "Choose a renderer_name that fits the model.",
        )

    def split_end(self, own: str) -> tuple[str, str]:
        """The template's text behind a message: up to its end marker, and after it."""
        end = self.end_marker.search(own)
        return (own[: end.end()], own[end.end() :]) if end else ("", own)

    @cached_property
    def end_marker(self) -> re.Pattern[str]:
        """Any token that ends a reply."""
        stops = [re.escape(str(self.tokenizer.convert_ids_to_tokens(index))) for index in self.stop_token_ids]
        return re.compile("|".join(sorted(stops, key=len, reverse=True)) or "(?!)")

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokenizer's EOS, and the special token that the template puts behind an answer."""
        eos = self.tokenizer.eos_token_id
        probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        behind = self.apply(probe, ["a", "\ue001"], False).rpartition("\ue001")[2]
        first = self.tokenizer.encode(behind, add_special_tokens=False)[:1]
        known = [eos] if isinstance(eos, int) else []
        return frozenset(known) | frozenset(first).intersection(self.tokenizer.all_special_ids)

    def write(self, messages: Sequence[Message], generation: bool) -> Written:
        """The template's text around the messages', which it may strip and nothing else.

        Raises DataError when it refuses the conversation, or when filling the texts in does not give what it writes.
        """
        holders = [HOLDER.format(index) for index in range(len(messages))]
        parts = HELD.split(self.apply(messages, holders, generation))
        own, kept, numbers = parts[::4], zip(parts[1::4], parts[3::4], strict=True), [int(part) for part in parts[2::4]]
        texts = [messages[index]["content"] for index in numbers]
        texts = [left_as_is(text, *marks) for text, marks in zip(texts, kept, strict=True)]
        whole = self.apply(messages, [message["content"] for message in messages], generation)
        # Qwen3's template takes line ends, and only those, from the front of the answer that it puts a think block to.
        for read in (texts, [*texts[:-1], *(text.lstrip("\n") for text in texts[-1:])]):
            filled = "".join(piece for pair in zip(own, [*read, ""], strict=True) for piece in pair)
            if filled == whole and numbers == list(range(len(messages))):
                return Written(own, read)
        raise DataError(
            f"The chat template of {self.tokenizer.name_or_path} changes the messages' text.",
            "Every text must stand in the conversation, in order, as it is or stripped.",
            "Choose a renderer_name that fits the model.",
        )

    def apply(self, messages: Sequence[Message], contents: list[str], generation: bool) -> str:
        """The template's text with these contents.

        Raises DataError for a conversation that the template refuses.
        """
        filled = [{"role": message["role"], "content": text} for message, text in zip(messages, contents, strict=True)]
        try:
            return str(self.tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=generation))
        except TemplateError as error:
            found = f"The chat template of {self.tokenizer.name_or_path} refuses a conversation: {error}."
            raise DataError(found, "It must take every conversation.", "Choose another renderer_name.") from error


def left_as_is(text: str, left: str, right: str) -> str:
    """A text, stripped on the sides whose mark the template took away."""
    text = text if left else text.lstrip()
    return text if right else text.rstrip()
