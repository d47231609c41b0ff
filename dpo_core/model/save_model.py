"""Writing models in transformers' format, so that anything can load them."""

import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from dpo_core.model.locate import TOKENIZER_FILES
from dpo_core.render.registry import CHECKPOINT_METADATA
from dpo_core.system.progress import ticking


@ticking("writing the model")
def save_model(model: PreTrainedModel, tokenizer_from: Path, renderer_name: str | None, path: Path) -> None:
    """Weights as safetensors, the tokenizer's own files as they are, the renderer's name, if known, in ``dpo.json``."""
    model.save_pretrained(path)
    for pattern in TOKENIZER_FILES:
        for found in tokenizer_from.glob(pattern):
            if found.is_file():
                shutil.copyfile(found, path / found.name)
    if renderer_name is not None:
        (path / CHECKPOINT_METADATA).write_text(json.dumps({"renderer_name": renderer_name}))
