"""What continues prompts, whatever does it; and the engine that is ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import Decoding, Finished, context, decode


class Engine(Protocol):
    """Something that continues prompts of token ids."""

    @property
    def name(self) -> EngineName:
        """What it is called in settings."""

    @property
    def context(self) -> int | None:
        """How many tokens it can attend to at most, None where its model does not say."""

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], finished: Finished
    ) -> None:
        """Continue every prompt, and tell of each as soon as it is done, by its index.

        ``streams``: what each row's draws are made from, beside the seed. Raises what kept it from going on; rows that
        were told of are done.
        """


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """Our own batches, see :func:`dpo_core.inference.decoding.decode`. ``precision`` bf16 computes under autocast."""

    model: PreTrainedModel
    precision: str = "fp32"
    name: ClassVar[EngineName] = "torch"

    @property
    def context(self) -> int | None:
        """The model's ``max_position_embeddings``."""
        return context(self.model)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], finished: Finished
    ) -> None:
        """As :class:`Engine` says."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            decode(self.model, prompts, decoding, streams, finished)
