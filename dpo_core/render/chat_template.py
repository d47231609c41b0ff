"""``chat_template``: any other model, through the template that its tokenizer ships."""

import re
from collections.abc import Sequence
from functools import cached_property

from dpo_core.data.preference import Message
from dpo_core.errors import RecipeError
from dpo_core.render.renderer import Example, Pieces, Renderer, Turn

SENTINEL = re.compile("\ue000(\\d+)\ue001")


class ChatTemplate(Renderer):
    """The template is rendered around placeholders, so that message text never meets the template's special tokens."""

    name = "chat_template"

    def turn(self, message: Message, index: int) -> Turn:
        """A template renders whole conversations; there is no single turn.

        Raises TypeError always: every caller here goes through the whole-conversation methods.
        """
        raise TypeError("a chat template renders whole conversations")

    def build_supervised_example(self, messages: Sequence[Message]) -> Example:
        """The answer is what the template adds after the generation prompt, up to its end marker.

        Raises RecipeError when the conversation does not begin with that prompt.
        """
        prompt, whole = self.build_generation_prompt(messages[:-1]), self.render(messages, generation=False)
        if whole[: len(prompt)] != prompt:
            raise RecipeError(
                f"In the chat template of {self.tokenizer.name_or_path} answers do not follow the generation prompt.",
                "The prompt's tokens must be the beginning of the conversation's.",
                "Choose a renderer_name that fits the model.",
            )
        ends = [place for place in range(len(prompt), len(whole)) if whole[place] in self.stop_token_ids]
        whole = whole[: ends[0] + 1] if ends else whole
        return Example(whole, [0] * len(prompt) + [1] * (len(whole) - len(prompt)))

    def build_generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The template's own generation prompt."""
        return self.render(messages, generation=True)

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokenizer's EOS, and the special token that the template puts behind an answer."""
        probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        behind = self.apply(probe, ["a", "\ue001"], False).rpartition("\ue001")[2]
        first = self.tokenizer.encode(behind, add_special_tokens=False)[:1]
        return super().stop_token_ids | frozenset(first).intersection(self.tokenizer.all_special_ids)

    def render(self, messages: Sequence[Message], generation: bool) -> list[int]:
        """Tokens of the template's text, contents tokenised apart with special tokens switched off."""
        contents = [message["content"] for message in messages]
        for texts in (contents, [text.strip() for text in contents]):
            pieces = self.split(messages, texts, generation)
            if pieces is not None:
                return self.encode_split(pieces, texts)
        raise RecipeError(
            f"The chat template of {self.tokenizer.name_or_path} changes the messages' text.",
            "Text must stand in the conversation as it is (or stripped).",
            "Choose a renderer_name that fits the model.",
        )

    def split(self, messages: Sequence[Message], texts: list[str], generation: bool) -> Pieces | None:
        """Template text and message numbers in turn, or None if filling the numbers in does not give the real text."""
        holders = [f"\ue000{index}\ue001" for index in range(len(messages))]
        pieces = SENTINEL.split(self.apply(messages, holders, generation))
        filled = "".join(texts[int(piece)] if odd % 2 else piece for odd, piece in enumerate(pieces))
        return tuple(pieces) if filled == self.apply(messages, [m["content"] for m in messages], generation) else None

    def apply(self, messages: Sequence[Message], contents: list[str], generation: bool) -> str:
        """The template's text with these contents."""
        filled = [{"role": message["role"], "content": text} for message, text in zip(messages, contents, strict=True)]
        return str(self.tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=generation))

    def encode_split(self, pieces: Pieces, texts: list[str]) -> list[int]:
        """Template pieces may hold special tokens, message text may not."""
        ids: list[int] = []
        for odd, piece in enumerate(pieces):
            text_ids = (
                self.encode_text(texts[int(piece)])
                if odd % 2
                else self.tokenizer.encode(piece, add_special_tokens=False)
            )
            ids += text_ids
        return ids
