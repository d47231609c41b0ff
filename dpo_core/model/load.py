"""Model loading: a directory in transformers' format to a torch module on the best device."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dpo_core.errors import RecipeError
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.system.device import device
from dpo_core.system.malloc_tuning import keep_heap
from dpo_core.system.progress import ticking

__all__ = ["device", "load_model", "load_tokenizer"]

PAGE = 4096

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@ticking("loading the model")
def load_model(path: Path, seed: int = 0, trust_remote_code: bool = False, dtype: str = "float32") -> PreTrainedModel:
    """The causal language model in ``path``, in evaluation mode (no dropout), on the best device.

    ``dtype``: type of the weights; bfloat16 only for weights that are not trained.
    A directory without weights gives the architecture of its configuration, initialized from ``seed``.
    Raises RecipeError when transformers cannot load the model, or its weights are broken.
    """
    try:
        if any(path.glob("*.safetensors")):
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
            )
        else:
            torch.manual_seed(seed)
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
            )
    except SafetensorError as error:
        raise broken_weights_error(path, error) from error
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The model in {path} does not load: {str(error).splitlines()[0]}.",
            "It must be a causal language model that the installed transformers supports.",
            "Check the directory, or set trust_remote_code for a model with code of its own.",
        ) from error
    if device().type == "cpu":
        keep_heap()
    model.eval()  # type: ignore[no-untyped-call]
    loaded: PreTrainedModel = model.to(device())  # type: ignore[arg-type]
    page_in_weights(loaded)
    return loaded


@torch.no_grad()
def page_in_weights(model: nn.Module) -> None:
    """Read memory-mapped weights into memory, so that the process's memory use is final before it is measured."""
    for weight in model.parameters():
        if weight.device.type == "cpu":
            weight.flatten()[:: PAGE // weight.element_size()].sum()


def broken_weights_error(path: Path, error: SafetensorError) -> RecipeError:
    """The error for weights that safetensors refuses, with the names of the broken files."""
    names = [file.name for file in sorted(path.glob("*.safetensors")) if not is_readable(file)]
    suffix = f" ({', '.join(names)})" if names else ""
    return RecipeError(
        f"The weights in {path} are broken{suffix}: {error}.",
        "A truncated or changed file is not read at all.",
        "Copy or download it again.",
    )


def is_readable(file: Path) -> bool:
    """Whether a safetensors file has a valid header and all data that the header lists."""
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, in training mode too: policy and reference must be the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def check_vocabulary(model: PreTrainedModel, largest: int) -> None:
    """Raises RecipeError when the model has no embedding for the tokenizer's ``largest`` token id."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if largest >= vocabulary:
        raise RecipeError(
            f"The tokenizer has token id {largest}; the model in {model.name_or_path} has {vocabulary} embeddings.",
            "Every token needs an embedding.",
            "Use the tokenizer that belongs to the model, or resize its embeddings.",
        )
