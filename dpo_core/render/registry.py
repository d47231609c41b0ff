"""The renderers by name, and which one fits a model."""

import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpo_core.render.renderer import Renderer

NAMES = ("role_colon", "qwen3_instruct", "llama3", "chat_template")

RECOMMENDED = (
    (r"llama-3.*instruct", "llama3"),
    (r"qwen3.*instruct-2507|qwen2\.5.*instruct", "qwen3_instruct"),
    (r"^(meta-)?llama-[\d.]+-\d+b(-hf)?$|^qwen[\d.]+-.*base$|^qwen2\.5-[\d.]+b$|^deepseek.*base$", "role_colon"),
)

STORED = "dpo.json"


def get_renderer(name: str, tokenizer: "PreTrainedTokenizerBase") -> "Renderer":
    """The renderer of this name over this tokenizer.

    Raises RecipeError for an unknown name, with the nearest one.
    """
    check_name(name)
    # Lazy: transformers' tokenizers import torch (2 s), which choosing a renderer's name must not pay.
    from dpo_core.render.chat_template import ChatTemplate
    from dpo_core.render.chatml import Qwen3Instruct
    from dpo_core.render.llama3 import Llama3
    from dpo_core.render.role_colon import RoleColon

    kinds: dict[str, type[Renderer]] = {kind.name: kind for kind in (RoleColon, Qwen3Instruct, Llama3, ChatTemplate)}
    return kinds[name](tokenizer)


def check_name(name: str) -> None:
    """Raises RecipeError unless a renderer has this name."""
    if name in NAMES:
        return
    near = difflib.get_close_matches(name, NAMES, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Choose one of them."
    raise RecipeError(f"There is no renderer {name!r}.", f"Renderers are {', '.join(NAMES)}.", remedy)


def resolve(explicit: str | None, model_name: str, path: Path) -> str:
    """Explicit, else stored with the weights, else recommended for the model, else the chat template or role_colon."""
    if explicit:
        check_name(explicit)
        return explicit
    return stored(path) or recommended(model_name) or ("chat_template" if has_template(path) else "role_colon")


def stored(path: Path) -> str | None:
    """The renderer that a checkpoint was trained with."""
    note = path / STORED
    return str(json.loads(note.read_text())["renderer_name"]) if note.is_file() else None


def recommended(model_name: str) -> str | None:
    """The renderer of a model family, by its published name."""
    leaf = model_name.rstrip("/").rpartition("/")[2].lower()
    return next((name for pattern, name in RECOMMENDED if re.search(pattern, leaf)), None)


def has_template(path: Path) -> bool:
    """Whether the tokenizer in this directory ships a chat template."""
    if (path / "chat_template.jinja").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and "chat_template" in json.loads(config.read_text())
