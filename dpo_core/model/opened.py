"""Weights ready to be used: those of a directory, or of adapters added into the model that they name."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from dpo_core.model import adapter
from dpo_core.model.load import load_model
from dpo_core.model.source import check_directory, describe, locate
from dpo_core.requests import MergeRequest


class Opened(NamedTuple):
    """A model, and where its tokenizer is."""

    model: PreTrainedModel
    tokenizer_path: Path


def open_weights(path: Path, dtype: str = "float32") -> Opened:
    """The model in a directory of weights, or of LoRA adapters, in this type.

    Raises RecipeError for a directory that is neither.
    """
    if not adapter.is_adapter(path):
        check_directory(path)
        return Opened(load_model(path, dtype=dtype), path)
    # Lazy: peft costs seconds, and a served model is installed without it.
    from dpo_core.model.lora import merged
    from dpo_core.model.merge import adapted

    adapter.check_weights(path)
    name = adapter.base_name(path)
    base = describe(locate(name, None), name)
    adapter.check_base(path, base.fingerprint, name)
    request = MergeRequest(base=base, adapter=path, name=name)
    whole = merged(adapted(load_model(base.path), request)).to(getattr(torch, dtype))
    return Opened(whole.eval(), base.path)
