"""LoRA through peft: adapters on all linear layers of a frozen model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from dpo_core.errors import RecipeError
from dpo_core.progress import ticking
from dpo_core.recipe import ModelSettings


def trainable(model: PreTrainedModel, settings: ModelSettings, seed: int) -> PreTrainedModel | PeftModel:
    """The model with what is to be trained requiring gradients: LoRA adapters, or every weight when lora_rank is 0.

    LoRA (arXiv 2106.09685) adds (lora_alpha / lora_rank) B A to each linear layer but the head; B starts at zero,
    so that the policy starts as the reference. No dropout.
    Raises RecipeError when no layer matches.
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
        with no_deprecations():
            return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(
            f"LoRA finds no layer to adapt in {type(model).__name__}: {str(error).splitlines()[0]}.",
            "Adapters go on linear layers, named by lora_targets.",
            "Mend lora_targets, or set lora_rank=0 to train every weight.",
        ) from error


@contextmanager
def no_deprecations() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 for an attribute by its old name, which is nobody's business here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


@ticking("merging the adapters")
def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model with adapters added into its weights, in float32; the argument is used up."""
    return model.float().merge_and_unload() if isinstance(model, PeftModel) else model
