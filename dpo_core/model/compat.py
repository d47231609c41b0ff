"""Compatibility with all releases of torch, transformers and peft that pyproject.toml allows."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig


def recompute_activations(model: nn.Module) -> None:
    """Turn gradient checkpointing on: activations are recomputed in the backward pass (training mode only).

    transformers 5.23 calls it ``activation_checkpointing_enable``, older releases ``gradient_checkpointing_enable``.
    """
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable: Callable[[], None] = getattr(model, new if hasattr(model, new) else old)
    enable()


def continuous_batching_config(model: PreTrainedModel, max_rows: int | None, share: float) -> ContinuousBatchingConfig:
    """Continuous batching over ``share`` of the free memory, with at most ``max_rows`` rows (None: no limit).

    Flash attention is off for float32, which its kernels do not support. transformers before 5.19 has no setting for
    this and reads an attribute of the model.
    """
    settings = ContinuousBatchingConfig(max_requests_per_batch=max_rows, max_memory_percent=share)
    if model.dtype == torch.float32:
        if hasattr(settings, "auto_switch_to_flash"):
            settings.auto_switch_to_flash = False
        else:
            model._supports_flash_attn = False
    return settings
