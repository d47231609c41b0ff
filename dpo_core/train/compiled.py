"""torch.compile where it pays: layer by layer, so that a model of many layers compiles one or two."""

from collections.abc import Iterator

import torch
from torch import nn

from dpo_core.train.logps import plain


def compile_layers(model: nn.Module, strict: bool) -> None:
    """Compile a transformers model's decoder layers, in place, for rows of any length.

    strict: a layer that cannot be compiled is an error when it is first run; otherwise it runs as it is, and torch says
    so once. Under deterministic algorithms the compiler chooses kernels by rule, not by timing them.
    """
    torch._dynamo.config.suppress_errors = not strict
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    for layer in layers(model):
        layer.compile(dynamic=True)


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder's layers, which all have the same few forward functions."""
    causal = plain(model)
    kinds = set(causal._no_split_modules or ())
    return (module for module in causal.get_decoder().modules() if type(module).__name__ in kinds)
