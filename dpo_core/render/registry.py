"""The renderers by name, which one fits a model, and users' own. Imports no torch and no transformers."""

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
    """A renderer: where its class is, and what conversations look like in its format."""

    place: str
    look: str


# Importing these costs transformers and torch (2 s), which choosing a name must not pay.
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

# The first that matches a model's published name, lower case, without its owner.
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

STORED = "dpo.json"


logger = logging.getLogger(__name__)


def register(name: str, place: str, recommended_for: str | None = None) -> None:
    """Make ``package.module:Class``, a Renderer, known as ``name`` in this process and in the runs that it starts.

    ``recommended_for`` is a pattern of model names (lower case, without owner) that it fits before any other.
    Raises RecipeError for a name that is taken by another one, or a place that is none.
    """
    check_place(place)
    if name in BUILT_IN or REGISTERED.get(name, place) != place:
        raise RecipeError(f"There is a renderer {name!r} already.", "Names are unique.", "Choose another name.")
    REGISTERED[name] = place
    if recommended_for:
        RECOMMENDED.insert(0, (recommended_for, name))


def place_of(name: str) -> str:
    """``package.module:Class`` of a renderer.

    Raises RecipeError for an unknown name, with the nearest one, and for a module that cannot be found.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].place
    place = REGISTERED.get(name, name)
    if ":" in place:
        check_place(place)
        return place
    otherwise = "Choose one of them, or name your own as package.module:Class."
    remedy = did_you_mean(name, [*BUILT_IN, *REGISTERED], otherwise, cutoff=0.6)
    raise RecipeError(
        f"There is no renderer {name!r}.", f"Renderers are {', '.join([*BUILT_IN, *REGISTERED])}.", remedy
    )


def get_renderer(name: str, tokenizer: "PreTrainedTokenizerBase") -> "Renderer":
    """The renderer of this name, or ``package.module:Class``, over this tokenizer.

    Raises RecipeError for an unknown name, with the nearest one; for a class that is no Renderer; and for a tokenizer
    without the special tokens that it needs, with those it lacks and the renderers that fit.
    """
    kind = load(place_of(name))
    missing = lacking(kind, tokenizer)
    if missing:
        fits = [other for other, entry in BUILT_IN.items() if not lacking(load(entry.place), tokenizer)]
        raise RecipeError(
            f"The tokenizer of {tokenizer.name_or_path} has no {', '.join(missing)}.",
            f"The renderer {name} needs {'them' if len(missing) > 1 else 'it'}.",
            f"Choose renderer_name={' or '.join(fits)}, which it fits.",
        )
    renderer = kind(tokenizer)
    # What is stored with a checkpoint must be found again elsewhere: a user's own by its place.
    renderer.name = name if name in BUILT_IN else place_of(name)
    return renderer


def lacking(kind: "type[Renderer]", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What a format needs and the tokenizer does not have: special tokens, a chat template."""
    if kind.name == "chat_template":
        return [] if tokenizer.chat_template else ["chat template"]
    vocabulary = tokenizer.get_vocab() if kind.markers else {}
    return [f"token {marker}" for marker in kind.markers if marker not in vocabulary]


def load(place: str) -> "type[Renderer]":
    """The class at ``package.module:Class``.

    Raises RecipeError when it does not import, is not there, or is no Renderer.
    """
    # Lazy: this module imports transformers and torch (2 s).
    from dpo_core.render.renderer import Renderer

    module, _, attribute = place.partition(":")
    rule = "A renderer is package.module:Class, a subclass of dpo_core.render.renderer.Renderer."
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise RecipeError(f"The renderer {place} does not load: {error}.", rule, "Check the name.") from error
    if not (isinstance(kind, type) and issubclass(kind, Renderer)):
        raise RecipeError(f"{place} is no Renderer.", rule, "Inherit from it and define turn().")
    if kind.__abstractmethods__ or not hasattr(kind, "name"):
        lacks = ", ".join([*sorted(kind.__abstractmethods__), *([] if hasattr(kind, "name") else ["name"])])
        raise RecipeError(f"The renderer {place} lacks {lacks}.", rule, "Define it.")
    return kind


def check_name(name: str) -> None:
    """Raises RecipeError unless a renderer has this name, or it is the place of a class that can be found."""
    place_of(name)


def check_place(place: str) -> None:
    """Raises RecipeError unless ``package.module:Class`` names a module that can be found; nothing is imported."""
    if source(place) is None:
        raise RecipeError(
            f"There is no module for the renderer {place!r}.",
            "A user's own is package.module:Class, importable from the working directory.",
            "Check the name, or install the package.",
        )


def source(place: str) -> Path | None:
    """The file of a class's module; None when there is none."""
    # A stage's process has the working directory on its path; the command's own may not.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, _, attribute = place.partition(":")
    try:
        spec = importlib.util.find_spec(module) if module and attribute else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def identity(name: str) -> list[str]:
    """What a rendering depends on: the renderer's name; for a user's own also the fingerprint of its module's file."""
    found = None if name in BUILT_IN else source(place_of(name))
    return [name, fingerprint.of_file(found)] if found else [name]


def resolve(explicit: str | None, model_name: str, path: Path) -> str:
    """Explicit, else stored with the weights, else recommended for the model, else the chat template or role_colon.

    A built-in renderer's name, or the place of a user's own, which every process understands.
    Raises RecipeError when it is neither.
    """
    name = explicit or usual(model_name, path) or ("chat_template" if has_template(path) else "role_colon")
    return name if name in BUILT_IN else place_of(name)


def usual(model_name: str, path: Path) -> str | None:
    """The renderer stored with the weights, or else recommended for the model."""
    return stored(path) or recommended(model_name)


def advise(explicit: str | None, model_name: str, path: Path) -> None:
    """Log a warning where a model is used with another renderer than its own, or with role_colon for want of one."""
    name, own = resolve(explicit, model_name, path), usual(model_name, path)
    if explicit and own and explicit != own:
        whose = "was trained with" if stored(path) else "is made for"
        logger.warning(
            "renderer_name=%s, but %s %s %s: the model will read %s instead of %s.",
            *(explicit, model_name, whose, own, look(explicit), look(own)),
        )
    if not explicit and not own and name == "role_colon":
        logger.warning(
            "%s is not a known model and its tokenizer has no chat template: renderer_name=role_colon (%s).",
            *(model_name, look(name)),
        )


def look(name: str) -> str:
    """What conversations look like in a renderer's format."""
    return BUILT_IN[name].look if name in BUILT_IN else f"the format of {name}"


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
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))
