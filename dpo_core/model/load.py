"""Model directories to torch modules."""

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

    dtype: of its weights; bfloat16 only for weights that stay as they are.
    A directory without weights gives the architecture of its configuration, initialised from ``seed``.
    Raises RecipeError when transformers cannot load it, or its weights are broken.
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
        raise broken(path, error) from error
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The model in {path} does not load: {str(error).splitlines()[0]}.",
            "It must be a causal language model that the installed transformers knows.",
            "Check the directory, or trust_remote_code for a model that brings its own code.",
        ) from error
    if device().type == "cpu":
        keep_heap()
    model.eval()  # type: ignore[no-untyped-call]
    loaded: PreTrainedModel = model.to(device())  # type: ignore[arg-type]
    touch(loaded)
    return loaded


@torch.no_grad()
def touch(model: nn.Module) -> None:
    """Bring weights into memory that are still a map of their file: what a process holds is then what it will hold."""
    for weight in model.parameters():
        if weight.device.type == "cpu":
            weight.flatten()[:: PAGE // weight.element_size()].sum()


def broken(path: Path, error: SafetensorError) -> RecipeError:
    """The error for weights that safetensors refuses, with the names of the files that it does not open."""
    names = [file.name for file in sorted(path.glob("*.safetensors")) if not opens(file)]
    which = f" ({', '.join(names)})" if names else ""
    return RecipeError(
        f"The weights in {path} are broken{which}: {error}.",
        "A file that was cut off or changed on its way here is not read at all.",
        "Copy or download it again.",
    )


def opens(file: Path) -> bool:
    """Whether a file of weights has a header, and all that this tells of."""
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def without_dropout(model: nn.Module) -> None:
    """Dropout of no kind, in training mode neither: policy and reference must be the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def check_vocabulary(model: PreTrainedModel, largest: int) -> None:
    """Raises RecipeError when the tokenizer makes ids (up to ``largest``) that the model has no embedding for."""
    known = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if largest >= known:
        raise RecipeError(
            f"The tokenizer makes token {largest}, and the model in {model.name_or_path} knows {known}.",
            "Every token needs an embedding.",
            "Use the tokenizer that belongs to the model, or resize its embeddings.",
        )
