"""What differs between the releases of torch, transformers and peft that pyproject.toml allows, in this one place."""

from collections.abc import Callable

from torch import nn


def recompute_activations(model: nn.Module) -> None:
    """Have a transformers model compute its layers' activations again in the backward pass (training mode only).

    transformers 5.23 calls it ``activation_checkpointing_enable``, older releases ``gradient_checkpointing_enable``.
    """
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable: Callable[[], None] = getattr(model, new if hasattr(model, new) else old)
    enable()
