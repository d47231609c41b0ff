"""``chat_template``: renderer for any other model, through its tokenizer's chat template."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError

from dpo_core.data.preference import Message
from dpo_core.errors import DataError, RecipeError
from dpo_core.render.message_pieces import Pieces, TemplateText, Turn
from dpo_core.render.renderer import Renderer

# A placeholder for a message's text, between white space that disappears where the template strips the text.
PLACEHOLDER = "\x1f\ue000{}\ue001\x1f"
PLACEHOLDER_PATTERN = re.compile("(\x1f?)\ue000(\\d+)\ue001(\x1f?)")


class TemplateOutput(NamedTuple):
    """A template's output: its own N + 1 texts, and the N messages' texts between them (stripped or not)."""

    template_texts: list[str]
    message_texts: list[str]


class ChatTemplate(Renderer):
    """Renders the template around placeholders, so that message text never becomes one of its special tokens."""

    name = "chat_template"

    def opening(self, messages: Sequence[Message]) -> Pieces:
        """Nothing: the template writes its own opening."""
        return ()

    def turn(self, messages: Sequence[Message], index: int) -> Turn:
        """The turn of one message; the template renders the whole conversation."""
        return self.turns(messages)[index]

    def prompt(self, messages: Sequence[Message], prefilled: bool = True) -> Pieces:
        """The template's own generation prompt."""
        output = self.write(messages, generation=True)
        pieces: Pieces = (TemplateText(output.template_texts[0]),)
        for text, template_text in zip(output.message_texts, output.template_texts[1:], strict=True):
            pieces += (text, TemplateText(template_text))
        return pieces

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turn]:
        """The turns of a conversation: an output is the text up to its end marker; the last begins after the prompt.

        Raises RecipeError where responses do not follow the generation prompt, DataError for a conversation that the
        template refuses or rewrites.
        """
        output = self.write(messages, generation=False)
        after_messages = [self.split_end(template_text) for template_text in output.template_texts[1:]]
        headers = [output.template_texts[0], *(after for _, after in after_messages[:-1])]
        openings = [""] * len(headers)
        if messages[-1]["role"] == "assistant":
            openings[-1] = self.response_prefix(messages, output)
            headers[-1] = headers[-1].removesuffix(openings[-1])
        return [
            Turn((TemplateText(header),), (TemplateText(opening), text, TemplateText(end)))
            for header, opening, text, (end, _) in zip(
                headers, openings, output.message_texts, after_messages, strict=True
            )
        ][start:]

    def response_prefix(self, messages: Sequence[Message], output: TemplateOutput) -> str:
        """The template's text between the generation prompt and the last message's text.

        Raises RecipeError when the conversation does not begin with that prompt.
        """
        prompt = self.write(messages[:-1], generation=True)
        before = (output.template_texts[:-2], output.message_texts[:-1])
        if (prompt.template_texts[:-1], prompt.message_texts) == before and output.template_texts[-2].startswith(
            prompt.template_texts[-1]
        ):
            return output.template_texts[-2].removeprefix(prompt.template_texts[-1])
        raise RecipeError(
            f"In the chat template of {self.tokenizer.name_or_path} answers do not follow the generation prompt.",
            "The prompt's tokens must be the beginning of the conversation's.",
            "Choose a renderer_name that fits the model.",
        )

    def split_end(self, template_text: str) -> tuple[str, str]:
        """Split the template's text after a message: up to the end marker, and after it."""
        end = self.end_marker.search(template_text)
        return (template_text[: end.end()], template_text[end.end() :]) if end else ("", template_text)

    @cached_property
    def end_marker(self) -> re.Pattern[str]:
        """Pattern of the tokens that end a response."""
        stops = [re.escape(str(self.tokenizer.convert_ids_to_tokens(index))) for index in self.stop_token_ids]
        return re.compile("|".join(sorted(stops, key=len, reverse=True)) or "(?!)")

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's EOS, and of the special token that the template writes after a response."""
        eos = self.tokenizer.eos_token_id
        probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        after_response = self.apply(probe, ["a", "\ue001"], False).rpartition("\ue001")[2]
        first = self.tokenizer.encode(after_response, add_special_tokens=False)[:1]
        ids = [eos] if isinstance(eos, int) else []
        return frozenset(ids) | frozenset(first).intersection(self.tokenizer.all_special_ids)

    def write(self, messages: Sequence[Message], generation: bool) -> TemplateOutput:
        """Render the template, and split its text from the messages' texts, which it may only strip.

        Raises DataError when it refuses the conversation, or changes a message's text.
        """
        placeholders = [PLACEHOLDER.format(index) for index in range(len(messages))]
        parts = PLACEHOLDER_PATTERN.split(self.apply(messages, placeholders, generation))
        template_texts, numbers = parts[::4], [int(part) for part in parts[2::4]]
        marks_kept = zip(parts[1::4], parts[3::4], strict=True)
        message_texts = [messages[index]["content"] for index in numbers]
        message_texts = [
            strip_like_template(text, *marks) for text, marks in zip(message_texts, marks_kept, strict=True)
        ]
        expected = self.apply(messages, [message["content"] for message in messages], generation)
        # Qwen3's template strips newlines, and only those, from the start of a response after a think block.
        for candidate in (message_texts, [*message_texts[:-1], *(text.lstrip("\n") for text in message_texts[-1:])]):
            filled = "".join(piece for pair in zip(template_texts, [*candidate, ""], strict=True) for piece in pair)
            if filled == expected and numbers == list(range(len(messages))):
                return TemplateOutput(template_texts, candidate)
        raise DataError(
            f"The chat template of {self.tokenizer.name_or_path} changes the messages' text.",
            "Every message's text must be in its output, in order, unchanged or stripped.",
            "Choose a renderer_name that fits the model.",
        )

    def apply(self, messages: Sequence[Message], contents: list[str], generation: bool) -> str:
        """Render the template with these contents.

        Raises DataError for a conversation that the template refuses.
        """
        filled = [{"role": message["role"], "content": text} for message, text in zip(messages, contents, strict=True)]
        try:
            return str(self.tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=generation))
        except TemplateError as error:
            found = f"The chat template of {self.tokenizer.name_or_path} refuses a conversation: {error}."
            rule = "The template must accept every conversation."
            raise DataError(found, rule, "Choose another renderer_name.") from error


def strip_like_template(text: str, left: str, right: str) -> str:
    """The text, stripped on the sides where the template stripped the placeholder's mark."""
    text = text if left else text.lstrip()
    return text if right else text.rstrip()
