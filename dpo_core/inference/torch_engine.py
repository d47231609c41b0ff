"""Engine protocol, and the engine that decodes with torch over our KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import Decoding, OnFinished, context_length, decode


class Engine(Protocol):
    """Completes prompts of token ids."""

    @property
    def name(self) -> EngineName:
        """The engine's name in the settings."""

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model can attend to, None where the model does not state it."""

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], on_finished: OnFinished
    ) -> None:
        """Complete every prompt; ``on_finished`` gets a prompt's index and its completion as soon as it is finished.

        ``streams``: a name for each prompt; with the seed it determines the prompt's random draws. Raises any error of
        the model; completions that ``on_finished`` got before it are valid.
        """


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """Batches over our KV cache, see :func:`dpo_core.inference.decoding.decode`. Precision bf16 runs under autocast."""

    model: PreTrainedModel
    precision: str = "fp32"
    name: ClassVar[EngineName] = "torch"

    @property
    def context_length(self) -> int | None:
        """The model's ``max_position_embeddings``."""
        return context_length(self.model)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], on_finished: OnFinished
    ) -> None:
        """As in :class:`Engine`."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            decode(self.model, prompts, decoding, streams, on_finished)
