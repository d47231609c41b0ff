"""Model saving in transformers' format, so that any tool can load the result."""

import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from dpo_core.model.locate import TOKENIZER_FILES
from dpo_core.render.registry import CHECKPOINT_METADATA
from dpo_core.system.progress import ticking


@ticking("writing the model")
def save_model(model: PreTrainedModel, tokenizer_path: Path, renderer_name: str | None, path: Path) -> None:
    """Write the weights as safetensors, the tokenizer's files, and the renderer's name (None: none) to ``path``."""
    model.save_pretrained(path)
    for pattern in TOKENIZER_FILES:
        for file in tokenizer_path.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, path / file.name)
    if renderer_name is not None:
        (path / CHECKPOINT_METADATA).write_text(json.dumps({"renderer_name": renderer_name}))
