"""Compatibility with releases: the installed one, and stand-ins for older and newer ones."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dpo_core.model import compat
from tests import tiny


class Older(nn.Module):
    """A model of transformers before 5.23."""

    calls = 0

    def gradient_checkpointing_enable(self) -> None:
        self.calls += 1


class Newer(Older):
    """A model of transformers 5.23, where the older name still exists and warns."""

    def gradient_checkpointing_enable(self) -> None:
        raise FutureWarning("the older name")

    def activation_checkpointing_enable(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("kind", [Older, Newer])
def test_activations_are_recomputed_under_either_name(kind: type[Older]) -> None:
    model = kind()
    compat.recompute_activations(model)
    assert model.calls == 1


@dataclass
class Earlier:
    """The continuous batching configuration before transformers 5.19."""

    max_requests_per_batch: int | None
    max_memory_percent: float


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("earlier", [False, True])
def test_flash_attention_is_off_for_float32_only(
    dtype: torch.dtype, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        monkeypatch.setattr(compat, "ContinuousBatchingConfig", Earlier)
    model = tiny.llama().to(dtype)
    settings = compat.continuous_batching_config(model, 7, 0.5)
    assert (settings.max_requests_per_batch, settings.max_memory_percent) == (7, 0.5)
    assert (model._supports_flash_attn and getattr(settings, "auto_switch_to_flash", True)) == (dtype != torch.float32)
    assert type(model)._supports_flash_attn
