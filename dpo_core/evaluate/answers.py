"""A model that answers: conversations in, answers out, many at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from dpo_core.data.preference import Message
from dpo_core.model.generate import Decoding, decode
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.model.source import check_directory
from dpo_core.render.registry import advise, get_renderer, resolve
from dpo_core.render.renderer import Renderer

StopReason = Literal["stop", "max_tokens", "model_length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. ``tokens`` counts the new ones, the end marker included.

    ``stop_reason``: it ended by itself (stop), was cut off (max_tokens), or filled the model's context (model_length).
    """

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answerer:
    """A model and its renderer. ``precision`` bf16 computes under autocast, fp32 as the weights are."""

    model: PreTrainedModel
    renderer: Renderer
    batch_size: int
    precision: str = "fp32"

    def answer(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Answer]:
        """The assistant's next message of every conversation, in their order."""
        return self.answer_ids([self.renderer.build_generation_prompt(told) for told in conversations], sampling)

    def answer_ids(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Answer]:
        """The assistant's next message after every prompt of token ids, in their order."""
        decoding = Decoding(
            max_new_tokens=sampling.max_new_tokens,
            stop_token_ids=self.renderer.stop_token_ids,
            stop_strings=self.renderer.stop_strings,
            tokenizer=self.renderer.tokenizer,
            batch_size=self.batch_size,
            temperature=sampling.temperature,
            seed=sampling.seed,
        )
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            completions = decode(self.model, prompts, decoding)
        return [
            self.read(completion.ids, completion.ended, len(prompt), sampling.max_new_tokens)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def read(self, ids: tuple[int, ...], ended: bool, prompt_tokens: int, limit: int) -> Answer:
        """New ids as an answer."""
        text = self.renderer.parse_response(ids).message["content"]
        cut: StopReason = "max_tokens" if len(ids) >= limit else "model_length"
        return Answer(text, "stop" if ended else cut, prompt_tokens, len(ids))


def open_answerer(path: Path, batch_size: int, renderer_name: str | None = None) -> Answerer:
    """The model in a directory, with the renderer of this name, or else the one that fits it.

    Raises RecipeError for a directory that is no model with a tokenizer, or a renderer that does not fit it.
    """
    check_directory(path)
    advise(renderer_name, path.name, path)
    renderer = get_renderer(resolve(renderer_name, path.name, path), load_tokenizer(path))
    return Answerer(load_model(path), renderer, batch_size)
