"""LoRA adapter directories in peft's format: their files, and the base model that they belong to."""

import json
from pathlib import Path

from dpo_core.errors import RecipeError
from dpo_core.model.locate import locate
from dpo_core.render.registry import CHECKPOINT_METADATA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FINGERPRINT = "base_fingerprint"


def is_adapter(path: Path) -> bool:
    """Whether the directory holds adapters and no full model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def adapter_files(path: Path) -> list[Path]:
    """The adapters' configuration and weights."""
    return [path / CONFIG, path / WEIGHTS]


def check_weights(path: Path) -> None:
    """Raises RecipeError unless the adapters' weights are in safetensors."""
    if not (path / WEIGHTS).is_file():
        raise RecipeError(
            f"{path} holds an adapter configuration and no {WEIGHTS}.",
            "Adapters are read from safetensors, never unpickled.",
            "Save them with safe_serialization=True.",
        )


def base_model_name(path: Path) -> str:
    """Hub id or directory of the model that the adapters were trained on.

    Raises RecipeError when their configuration does not name it.
    """
    name = json.loads((path / CONFIG).read_text()).get("base_model_name_or_path")
    if not name:
        raise RecipeError(
            f"The adapters in {path} do not say which model they belong to.",
            "Adapters are added into the weights they were trained on.",
            "Give that model as model_name=….",
        )
    return str(name)


def check_base_fingerprint(path: Path, fingerprint: str, name: str) -> None:
    """Raises RecipeError when the adapters record that they were trained on weights of another fingerprint."""
    metadata = path / CHECKPOINT_METADATA
    recorded = json.loads(metadata.read_text()).get(BASE_FINGERPRINT) if metadata.is_file() else None
    if recorded is not None and recorded != fingerprint:
        raise RecipeError(
            f"The adapters in {path} were trained on other weights than those of {name}.",
            "Adapters are added into the weights they were trained on.",
            "Give that model as model_name=…, or leave it out: the adapters name it.",
        )


def renderer_source(path: Path, name: str) -> tuple[str, Path]:
    """The model name and directory that determine the model's renderer.

    For adapters that record no renderer, those of their base model. Raises as :func:`base_model_name` and
    :func:`dpo_core.model.locate.locate`.
    """
    if not is_adapter(path) or (path / CHECKPOINT_METADATA).is_file():
        return name, path
    base = base_model_name(path)
    return base, locate(base, None)
