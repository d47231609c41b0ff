"""A directory of LoRA adapters in peft's format: what it holds, and which weights it belongs to."""

import json
from pathlib import Path

from dpo_core.errors import RecipeError
from dpo_core.model.locate import locate
from dpo_core.render.registry import CHECKPOINT_METADATA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FINGERPRINT = "base_fingerprint"


def is_adapter(path: Path) -> bool:
    """Whether adapters are there, and no whole model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def files(path: Path) -> list[Path]:
    """What the adapters are made of."""
    return [path / CONFIG, path / WEIGHTS]


def check_weights(path: Path) -> None:
    """Raises RecipeError unless the adapters are there in safetensors."""
    if not (path / WEIGHTS).is_file():
        raise RecipeError(
            f"{path} holds an adapter configuration and no {WEIGHTS}.",
            "Adapters are read from safetensors, never unpickled.",
            "Save them with safe_serialization=True.",
        )


def base_name(path: Path) -> str:
    """Hub id or directory of the weights that the adapters were trained on.

    Raises RecipeError when they do not say.
    """
    told = json.loads((path / CONFIG).read_text()).get("base_model_name_or_path")
    if not told:
        raise RecipeError(
            f"The adapters in {path} do not say which model they belong to.",
            "Adapters are added into the weights they were trained on.",
            "Give that model as model_name=….",
        )
    return str(told)


def check_base(path: Path, fingerprint: str, name: str) -> None:
    """Raises RecipeError when the adapters say that they were trained on weights of another fingerprint."""
    note = path / CHECKPOINT_METADATA
    wanted = json.loads(note.read_text()).get(BASE_FINGERPRINT) if note.is_file() else None
    if wanted is not None and wanted != fingerprint:
        raise RecipeError(
            f"The adapters in {path} were trained on other weights than those of {name}.",
            "Adapters are added into the weights they were trained on.",
            "Give that model as model_name=…, or leave it out: the adapters name it.",
        )


def whose(path: Path, name: str) -> tuple[str, Path]:
    """The name and directory that tell which renderer a model is used with: for adapters that keep no note of it, those
    of the weights they belong to.
    """
    if not is_adapter(path) or (path / CHECKPOINT_METADATA).is_file():
        return name, path
    base = base_name(path)
    return base, locate(base, None)
