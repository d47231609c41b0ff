"""torch.compile where it pays: layer by layer, so that a model of many layers compiles one or two."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dpo_core.errors import RecipeError
from dpo_core.recipe import TrainSettings
from dpo_core.train.logps import plain


def compiled(policy: nn.Module, train: TrainSettings) -> nn.Module:
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
    causal = plain(policy)
    kinds = set(causal._no_split_modules or ())
    for module in causal.get_decoder().modules():
        if type(module).__name__ in kinds:
            module.compile(dynamic=True)
    return policy


@contextmanager
def uncompiled(policy: nn.Module) -> Iterator[None]:
    """Inside, layers run as they are: what is measured rounds as it does in stages that compile nothing."""
    calls = {module: module._compiled_call_impl for module in policy.modules() if module._compiled_call_impl}
    for module in calls:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call
