"""What differs between the releases of torch, transformers and peft that pyproject.toml allows, in this one place."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig


def recompute_activations(model: nn.Module) -> None:
    """Have a transformers model compute its layers' activations again in the backward pass (training mode only).

    transformers 5.23 calls it ``activation_checkpointing_enable``, older releases ``gradient_checkpointing_enable``.
    """
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable: Callable[[], None] = getattr(model, new if hasattr(model, new) else old)
    enable()


def page_settings(model: PreTrainedModel, rows: int | None, share: float) -> ContinuousBatchingConfig:
    """Continuous batching over ``share`` of the free memory, of at most ``rows`` if any, without flash for float32.

    flash attention's kernels do not take float32. transformers before 5.19 has no setting for it and asks the model.
    """
    settings = ContinuousBatchingConfig(max_requests_per_batch=rows, max_memory_percent=share)
    if model.dtype == torch.float32:
        if hasattr(settings, "auto_switch_to_flash"):
            settings.auto_switch_to_flash = False
        else:
            model._supports_flash_attn = False
    return settings
