"""Registry of renderers by name, and the choice of one for a model. Imports no torch and no transformers."""

import importlib
import importlib.util
import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dpo_core.cache import fingerprint
from dpo_core.config.spelling import did_you_mean
from dpo_core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpo_core.render.renderer import Renderer


class Entry(NamedTuple):
    """A built-in renderer: its ``package.module:Class``, and a sample of its format."""

    class_path: str
    sample: str


# Class paths, not classes: importing them imports transformers and torch (2 s).
BUILT_IN = {
    "role_colon": Entry("dpo_core.render.formats.role_colon:RoleColon", r"User: …\n\nAssistant: …"),
    "llama3": Entry(
        "dpo_core.render.formats.llama3:Llama3", r"<|start_header_id|>user<|end_header_id|>\n\n…<|eot_id|>"
    ),
    "qwen3": Entry(
        "dpo_core.render.formats.chatml:Qwen3", r"<|im_start|>assistant\n, then a think block to be generated"
    ),
    "qwen3_disable_thinking": Entry(
        "dpo_core.render.formats.chatml:Qwen3DisableThinking",
        r"<|im_start|>assistant\n<think>\n\n</think>\n\n…<|im_end|>",
    ),
    "qwen3_instruct": Entry("dpo_core.render.formats.chatml:Qwen3Instruct", r"<|im_start|>assistant\n…<|im_end|>"),
    "deepseekv3": Entry("dpo_core.render.formats.deepseek:DeepSeekV3", "<｜User｜>…<｜Assistant｜></think>…"),
    "gpt_oss_no_sysprompt": Entry("dpo_core.render.formats.gpt_oss:GptOss", "<|start|>user<|message|>…<|end|>"),
    "kimi_k2": Entry("dpo_core.render.formats.kimi:KimiK2", "<|im_user|>user<|im_middle|>…<|im_end|>"),
    "gemma": Entry("dpo_core.render.formats.alternating:Gemma", r"<start_of_turn>user\n…<end_of_turn>"),
    "mistral": Entry("dpo_core.render.formats.alternating:Mistral", "[INST] …[/INST] …</s>"),
    "chat_template": Entry("dpo_core.render.formats.chat_template:ChatTemplate", "the tokenizer's own chat template"),
}
REGISTERED: dict[str, str] = {}

# Patterns of a model's published name (lower case, without its owner); the first match counts.
RECOMMENDED = [
    (r"llama-3.*instruct", "llama3"),
    (r"qwen3.*instruct-2507|qwen2\.5.*instruct", "qwen3_instruct"),
    (r"^(meta-)?llama-[\d.]+-\d+b(-hf)?$|^qwen[\d.]+-.*base$|^qwen2\.5-[\d.]+b$|^deepseek.*base$", "role_colon"),
    (r"^qwen3-(\d+b-a)?[\d.]+b(-fp8|-awq)?$", "qwen3"),
    (r"^deepseek-v3", "deepseekv3"),
    (r"^gpt-oss", "gpt_oss_no_sysprompt"),
    (r"^kimi-k2(-|$)", "kimi_k2"),
    (r"^gemma-(1\.1-|2-|3-)?\d+b-it$", "gemma"),
    (r"^mistral-7b-instruct-v0\.3|^mixtral-8x22b-instruct|^mistral-large-instruct-2407", "mistral"),
]

CHECKPOINT_METADATA = "dpo.json"


logger = logging.getLogger(__name__)


def register(name: str, path: str, recommended_for: str | None = None) -> None:
    """Register the Renderer ``package.module:Class`` as ``name``, in this process and in the runs that it starts.

    ``recommended_for``: pattern of model names (lower case, without owner); it is tried before all others.
    Raises RecipeError for a name that another renderer has, or a class path whose module is not found.
    """
    check_class_path(path)
    if name in BUILT_IN or REGISTERED.get(name, path) != path:
        raise RecipeError(
            f"There is a renderer {name!r} already.", "Renderer names are unique.", "Choose another name."
        )
    REGISTERED[name] = path
    if recommended_for:
        RECOMMENDED.insert(0, (recommended_for, name))


def class_path(name: str) -> str:
    """The class path ``package.module:Class`` of a renderer.

    Raises RecipeError for an unknown name, with the nearest one, and for a module that is not found.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].class_path
    path = REGISTERED.get(name, name)
    if ":" in path:
        check_class_path(path)
        return path
    fallback = "Choose one of them, or give your own as package.module:Class."
    remedy = did_you_mean(name, [*BUILT_IN, *REGISTERED], fallback, cutoff=0.6)
    raise RecipeError(
        f"There is no renderer {name!r}.", f"Renderers are {', '.join([*BUILT_IN, *REGISTERED])}.", remedy
    )


def get_renderer(name: str, tokenizer: "PreTrainedTokenizerBase") -> "Renderer":
    """The renderer of this name, or ``package.module:Class``, over this tokenizer.

    Raises RecipeError for an unknown name, with the nearest one; for a class that is no Renderer; and for a tokenizer
    without the special tokens that it needs, with the missing tokens and the renderers that fit.
    """
    kind = load_class(class_path(name))
    missing = missing_requirements(kind, tokenizer)
    if missing:
        candidates = {name: load_class(entry.class_path) for name, entry in BUILT_IN.items()}
        fits = [other for other, candidate in candidates.items() if not missing_requirements(candidate, tokenizer)]
        raise RecipeError(
            f"The tokenizer of {tokenizer.name_or_path} has no {', '.join(missing)}.",
            f"The renderer {name} needs {'them' if len(missing) > 1 else 'it'}.",
            f"Choose renderer_name={' or '.join(fits)}, which it fits.",
        )
    renderer = kind(tokenizer)
    # The name is stored with checkpoints, and other processes load a custom renderer by its class path.
    renderer.name = name if name in BUILT_IN else class_path(name)
    return renderer


def missing_requirements(kind: "type[Renderer]", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The special tokens, or the chat template, that a renderer needs and the tokenizer lacks."""
    if kind.name == "chat_template":
        return [] if tokenizer.chat_template else ["chat template"]
    vocabulary = tokenizer.get_vocab() if kind.markers else {}
    return [f"token {marker}" for marker in kind.markers if marker not in vocabulary]


def load_class(path: str) -> "type[Renderer]":
    """The class at ``package.module:Class``.

    Raises RecipeError when it does not import, does not exist, or is not a complete Renderer.
    """
    # Lazy: this module imports transformers and torch (2 s).
    from dpo_core.render.renderer import Renderer

    module, _, attribute = path.partition(":")
    rule = "A renderer is package.module:Class, a subclass of dpo_core.render.renderer.Renderer."
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise RecipeError(f"The renderer {path} does not load: {error}.", rule, "Check the class path.") from error
    if not (isinstance(kind, type) and issubclass(kind, Renderer)):
        raise RecipeError(f"{path} is not a Renderer.", rule, "Inherit from it and define turn().")
    if kind.__abstractmethods__ or not hasattr(kind, "name"):
        missing = ", ".join([*sorted(kind.__abstractmethods__), *([] if hasattr(kind, "name") else ["name"])])
        raise RecipeError(f"The renderer {path} lacks {missing}.", rule, "Define it.")
    return kind


def check_renderer(name: str) -> None:
    """Raises RecipeError unless this is a renderer's name, or the class path of a module that is found."""
    class_path(name)


def check_class_path(path: str) -> None:
    """Raises RecipeError unless the module of ``package.module:Class`` is found; nothing is imported."""
    if module_file(path) is None:
        raise RecipeError(
            f"There is no module for the renderer {path!r}.",
            "A custom renderer is package.module:Class, importable from the working directory.",
            "Check the name, or install the package.",
        )


def module_file(path: str) -> Path | None:
    """The file of the module of a class path; None when there is none."""
    # Stage processes have the working directory on sys.path; the command's process may not.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, _, attribute = path.partition(":")
    try:
        spec = importlib.util.find_spec(module) if module and attribute else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def renderer_identity(name: str) -> list[str]:
    """What identifies a renderer, for the cache key: its name; for a custom one also its module file's fingerprint."""
    file = None if name in BUILT_IN else module_file(class_path(name))
    return [name, fingerprint.of_file(file)] if file else [name]


def resolve_renderer(explicit: str | None, model_name: str, path: Path) -> str:
    """The renderer to use: explicit, else stored with the weights, else recommended, else chat_template or role_colon.

    Returns a built-in renderer's name or a custom one's class path, which every process can load.
    Raises RecipeError for an unknown name.
    """
    name = explicit or own_renderer(model_name, path) or ("chat_template" if has_chat_template(path) else "role_colon")
    return name if name in BUILT_IN else class_path(name)


def own_renderer(model_name: str, path: Path) -> str | None:
    """The renderer stored with the weights, or else recommended for the model; None for neither."""
    return stored_renderer(path) or recommended_renderer(model_name)


def warn_about_renderer(explicit: str | None, model_name: str, path: Path) -> None:
    """Log a warning for a renderer that is not the model's own, and for role_colon as the last resort."""
    name, expected = resolve_renderer(explicit, model_name, path), own_renderer(model_name, path)
    if explicit and expected and explicit != expected:
        relation = "was trained with" if stored_renderer(path) else "is made for"
        logger.warning(
            "renderer_name=%s, but %s %s %s: the model will read %s instead of %s.",
            *(explicit, model_name, relation, expected, format_sample(explicit), format_sample(expected)),
        )
    if not explicit and not expected and name == "role_colon":
        logger.warning(
            "%s is not a known model and its tokenizer has no chat template: renderer_name=role_colon (%s).",
            *(model_name, format_sample(name)),
        )


def format_sample(name: str) -> str:
    """A sample of a renderer's format."""
    return BUILT_IN[name].sample if name in BUILT_IN else f"the format of {name}"


def stored_renderer(path: Path) -> str | None:
    """The renderer that a checkpoint was trained with; None where none is stored."""
    metadata = path / CHECKPOINT_METADATA
    return str(json.loads(metadata.read_text())["renderer_name"]) if metadata.is_file() else None


def recommended_renderer(model_name: str) -> str | None:
    """The renderer recommended for a model by its published name; None for an unknown one."""
    short_name = model_name.rstrip("/").rpartition("/")[2].lower()
    return next((name for pattern, name in RECOMMENDED if re.search(pattern, short_name)), None)


def has_chat_template(path: Path) -> bool:
    """Whether the tokenizer in this directory has a chat template."""
    if (path / "chat_template.jinja").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))
