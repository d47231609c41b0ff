"""LoRA through peft: adapters on the linear layers of a frozen model, and merging them into the weights."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_core.config.recipe import ModelSettings
from dpo_core.errors import RecipeError
from dpo_core.system.progress import ticking

ADAPTER = "default"  # the name that peft gives a model's only adapter


def make_trainable(model: PreTrainedModel, settings: ModelSettings, seed: int) -> PreTrainedModel | PeftModel:
    """Set the parameters to train to require gradients: new LoRA adapters, or every weight when lora_rank is 0.

    LoRA (Hu et al., arXiv 2106.09685) adds (lora_alpha / lora_rank) B A to each linear layer but the head. B starts at
    zero, so that the policy starts as the reference. No dropout. Raises RecipeError when no layer matches.
    """
    if settings.lora_rank == 0:
        return model.requires_grad_(True)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if settings.lora_targets == ("all-linear",) else list(settings.lora_targets),
        task_type="CAUSAL_LM",
    )
    try:
        with ignore_deprecations():
            return use_adapted_linear(get_peft_model(model, config))
    except ValueError as error:
        raise RecipeError(
            f"LoRA finds no layer to adapt in {type(model).__name__}: {str(error).splitlines()[0]}.",
            "Adapters go on linear layers, named by lora_targets.",
            "Correct lora_targets, or set lora_rank=0 to train every weight.",
        ) from error


class AdaptedLinear(lora.Linear):  # type: ignore[misc]
    """A linear layer with one LoRA adapter: peft's module and parameters, with a forward of three matrix products.

    peft's own forward looks adapters up by name, casts the input to the adapter's type and back, and scales and adds in
    separate passes over the output, all of which torch.compile must compile. On a CPU both are equally fast (LAB.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out): x Wᵀ + b + (x Aᵀ · scale) Bᵀ; one addmm does the last product and sum."""
        if self.merged:
            return super().forward(x)  # type: ignore[no-any-return]
        base = self.base_layer
        result = F.linear(x, base.weight, base.bias)
        if self.disable_adapters:
            return result
        down, up = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        low = F.linear(x, down) * self.scaling[ADAPTER]
        added = torch.addmm(result.flatten(0, -2).to(low.dtype), low.flatten(0, -2), up.t())
        return added.view(result.shape).to(result.dtype)


def use_adapted_linear(model: PeftModel) -> PeftModel:
    """Turn each adapted plain linear layer of the model into an :class:`AdaptedLinear`, in place."""
    for module in model.modules():
        if type(module) is lora.Linear and type(module.base_layer) is nn.Linear and not module.lora_variant:
            module.__class__ = AdaptedLinear
    return model


@contextmanager
def ignore_deprecations() -> Iterator[None]:
    """Ignore peft 0.21's warning about an attribute that transformers 5.23 renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


@ticking("merging the adapters")
def merge_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model with its adapters merged into the weights, in float32. The argument is unusable afterwards."""
    return model.float().merge_and_unload() if isinstance(model, PeftModel) else model
