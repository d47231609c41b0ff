"""torch.compile where it pays: layer by layer, so that a model of many layers compiles one or two."""

import torch
from torch import Tensor, nn

from dpo_core.errors import RecipeError
from dpo_core.recipe import TrainSettings
from dpo_core.train.layout import probe
from dpo_core.train.logps import autocast, backward, plain
from dpo_core.train.packing import Layout, branches, build

# Several of FlexAttention's blocks: a size of one would be compiled as a constant.
PROBE_LENGTHS = (200, 150, 100)


def compiled(policy: nn.Module, train: TrainSettings, layout: Layout) -> nn.Module:
    """The policy with its decoder layers compiled, in place, where the recipe wants it and there is a GPU.

    They are tried on a pair, forward and backward. Layers that cannot be compiled run as they are, and a line says so;
    with compile_model=true that is a RecipeError, as is a machine without a GPU.
    """
    device = next(policy.parameters()).device
    if train.compile_model is True and device.type != "cuda":
        raise RecipeError("compile_model=true, and there is no GPU.", "Only GPU kernels are compiled.", "Leave it out.")
    if not train.compile_model or device.type != "cuda":
        return policy
    # Bits that are the same every time need kernels chosen by rule, not by timing them.
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    for layer in layers(policy):
        layer.compile(dynamic=True)
    cause = failure(policy, layout, train.precision)
    if cause is None:
        return policy
    if train.compile_model is True:
        raise RecipeError(
            f"{type(plain(policy)).__name__} cannot be compiled: {cause}.",
            "compile_model=true asks for compiled layers.",
            "Leave it out, and they run as they are.",
        )
    print(f"layers are not compiled, because {cause}", flush=True)
    for layer in layers(policy):
        layer._compiled_call_impl = None
    return policy


def failure(policy: nn.Module, layout: Layout, precision: str) -> str | None:
    """Why the layers cannot be compiled, or None when they can."""
    device = next(policy.parameters()).device
    batch = build(layout, [branches(probe(plain(policy), PROBE_LENGTHS))], device)

    def total(logps: Tensor, _: slice) -> Tensor:
        return logps.sum()

    try:
        with autocast(device, precision):
            backward(policy, batch, total)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        policy.zero_grad(set_to_none=True)
    return None


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, which all have the same few forward functions."""
    causal = plain(model)
    kinds = set(causal._no_split_modules or ())
    return [module for module in causal.get_decoder().modules() if type(module).__name__ in kinds]
