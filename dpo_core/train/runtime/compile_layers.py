"""torch.compile where it pays: layer by layer, so that all layers of a model share one compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import RecipeError
from dpo_core.train.logps import causal_model


def compile_policy(policy: nn.Module, train: TrainSettings) -> nn.Module:
    """The policy with its decoder layers compiled, in place, for rows of any length, if the recipe wants it on a GPU.

    auto leaves them as they are where activations are computed again: the two together are not proven (LAB.md).
    A layer that cannot be compiled runs as it is, and torch says so; with compile_model=true it is an error when it is
    first run. Raises RecipeError when compile_model=true and there is no GPU.
    """
    on_gpu = next(policy.parameters()).device.type == "cuda"
    if train.compile_model is True and not on_gpu:
        raise RecipeError("compile_model=true, and there is no GPU.", "Only GPU kernels are compiled.", "Leave it out.")
    left = train.compile_model == "auto" and train.activation_checkpointing
    if not train.compile_model or left or not on_gpu:
        return policy
    torch._dynamo.config.suppress_errors = train.compile_model == "auto"
    # Bits that are the same every time need kernels chosen by rule, not by timing them.
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    compile_layers(policy)
    return policy


def compile_layers(policy: nn.Module, backend: str = "inductor") -> None:
    """Compile every decoder layer, in place, for rows of any length."""
    embeddings = causal_model(policy).get_input_embeddings()
    if not embeddings.weight.requires_grad:
        embeddings.register_forward_hook(require_gradient)
    for layer in decoder_layers(policy):
        layer.compile(dynamic=True, backend=backend)


def require_gradient(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
    """Embeddings that require a gradient though their weights are frozen.

    Under LoRA the first layer's input would require none and the other layers' would: two compilations instead of one,
    for the price of one layer's gradient of its input.
    """
    return embedded.requires_grad_() if torch.is_grad_enabled() else embedded


def decoder_layers(policy: nn.Module) -> list[nn.Module]:
    """The blocks that a model repeats."""
    causal = causal_model(policy)
    kinds = set(causal._no_split_modules or ())
    return [module for module in causal.get_decoder().modules() if type(module).__name__ in kinds]


@contextmanager
def uncompiled(policy: nn.Module) -> Iterator[None]:
    """Inside, compiled layers run as they were written.

    For passes that are rare or of many shapes (validation, sampling, probes), each of which would be compiled anew: a
    compilation takes as long as hundreds of them.
    """
    layers = decoder_layers(policy)
    calls = [layer._compiled_call_impl for layer in layers]
    try:
        for layer in layers:
            layer._compiled_call_impl = None
        yield
    finally:
        for layer, call in zip(layers, calls, strict=True):
            layer._compiled_call_impl = call
