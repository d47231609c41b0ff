"""Read the world once, at the edge, into a Recipe: command line, then DPO_ environment, then TOML, then defaults."""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dpo_core.config.recipe import LEAVES, SECTIONS, Recipe
from dpo_core.config.spelling import did_you_mean, nearest_file
from dpo_core.errors import RecipeError

PREFIX = "DPO_"
NOT_SETTINGS = {"DPO_HOME", "DPO_DEBUG"}
NONE_WORDS = {"none", "null", ""}

Tree = dict[str, dict[str, Any]]


class Settings(BaseSettings, Recipe):
    """The recipe as the command line, the environment and the file give it."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Source(PydanticBaseSettingsSource):
    """A tree of named values as a source of settings; pydantic-settings merges several by priority."""

    def __init__(self, settings_cls: type[BaseSettings], tree: Tree) -> None:
        super().__init__(settings_cls)
        self.tree = tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The section of this name, if the source has it."""
        return self.tree.get(field_name), field_name, True

    def __call__(self) -> dict[str, Any]:
        """The whole tree."""
        return dict(self.tree)


def read_recipe(
    recipe: Path | None, assignments: Iterable[str], environment: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe of a TOML file, ``key=value`` words and the environment.

    Raises RecipeError naming the nearest right spelling of an unknown key, or a bad value's setting and rule.
    """
    trees = [from_words(assignments), from_environment(os.environ if environment is None else environment)]
    trees += [from_toml(recipe)] if recipe else []

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(  # type: ignore[override]  # ours only, none of the ready-made sources
            cls, settings_cls: type[BaseSettings], **_: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(Source(settings_cls, tree) for tree in trees)

    try:
        settings = Sourced()
    except ValidationError as error:
        raise invalid_setting(error) from None
    return Recipe.model_validate(settings.model_dump())


def from_words(words: Iterable[str]) -> Tree:
    """``learning_rate=1e-5``, ``train.learning_rate=1e-5`` and ``--train.learning-rate 1e-5`` all mean the same."""
    tree: Tree = {}
    for name, value in assignments(words):
        set_leaf(tree, name, value, "the command line")
    return tree


def assignments(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names and values in the order in which they are typed.

    Raises RecipeError for a word that is neither.
    """
    waiting: str | None = None
    for word in words:
        if waiting is not None:
            yield waiting, word
            waiting = None
        elif word.startswith("--") and "=" not in word:
            waiting = option_name(word)
        elif "=" in word:
            name, value = word.split("=", 1)
            yield option_name(name), value
        else:
            raise RecipeError(
                f"{word!r} is not an assignment.", "Settings are written key=value.", suggest_setting(word, LEAVES)
            )
    if waiting is not None:
        raise RecipeError(
            f"--{waiting} has no value.", "An option is followed by its value.", f"Write {waiting}=value."
        )


def option_name(word: str) -> str:
    """A setting's name from an option's spelling."""
    return word.removeprefix("--").replace("-", "_") if word.startswith("--") else word


def from_environment(environment: Mapping[str, str]) -> Tree:
    """``DPO_LEARNING_RATE`` or ``DPO_TRAIN__LEARNING_RATE``; any other ``DPO_`` name is an error."""
    tree: Tree = {}
    for name, value in sorted(environment.items()):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            set_leaf(tree, name.removeprefix(PREFIX).lower().replace("__", "."), value, f"the environment ({name})")
    return tree


def from_toml(path: Path) -> Tree:
    """A recipe file: tables named as the sections, or leaf names at the top."""
    if not path.is_file():
        raise RecipeError(f"There is no recipe file {path}.", "A recipe is a TOML file.", nearest_file(path))
    try:
        tables = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}.", "A recipe is a TOML file.", "Fix that line.") from None
    tree: Tree = {}
    for name, value in tables.items():
        leaves = {f"{name}.{leaf}": item for leaf, item in value.items()} if isinstance(value, dict) else {name: value}
        for leaf, item in leaves.items():
            set_leaf(tree, leaf, item, str(path))
    return tree


def set_leaf(tree: Tree, name: str, value: Any, where: str) -> None:
    """Set one setting in the tree, by leaf name or ``section.leaf``."""
    section, dot, leaf = name.rpartition(".")
    if dot and section not in SECTIONS:
        raise unknown_name(f"section {section!r}", where, suggest_setting(section, SECTIONS))
    if leaf not in (SECTIONS[section].model_fields if dot else LEAVES):
        raise unknown_name(f"setting {name!r}", where, suggest_setting(leaf, LEAVES))
    tree.setdefault(section or LEAVES[leaf], {})[leaf] = parse_value(leaf, value)


def unknown_name(what: str, where: str, remedy: str) -> RecipeError:
    """The error for a section or setting that does not exist."""
    return RecipeError(f"Unknown {what} in {where}.", "Every name must be a setting's.", remedy)


def parse_value(leaf: str, value: Any) -> Any:
    """A word as a TOML value: ``none`` is None, lists are comma-separated; pydantic converts the rest."""
    if not isinstance(value, str):
        return value
    if is_list(leaf):
        return tuple(
            item.strip() for item in value.split(",") if item.strip() and item.strip().lower() not in NONE_WORDS
        )
    annotation = SECTIONS[LEAVES[leaf]].model_fields[leaf].annotation
    return None if value.strip().lower() in NONE_WORDS and "None" in str(annotation) else value


def is_list(leaf: str) -> bool:
    """Whether a setting's value is itself a list."""
    return str(SECTIONS[LEAVES[leaf]].model_fields[leaf].annotation).startswith("tuple")


def suggest_setting(word: str, names: Iterable[str]) -> str:
    """A remedy: the nearest setting or section."""
    return did_you_mean(word, names, "See dpo run --help for the settings.")


def split_recipe_file(words: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """The recipe file that a command line begins with, if it does, and the words after it."""
    if words and words[0].endswith(".toml"):
        return Path(words[0]), words[1:]
    return None, words


def invalid_setting(error: ValidationError) -> RecipeError:
    """The first error that pydantic found, as a RecipeError in three parts."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    leaf = next((part for part in reversed(location) if part in LEAVES), None)
    if leaf is None:
        return RecipeError(f"{first['msg'].removeprefix('Value error, ')}.", "", "Change one of the two.")
    help_text = SECTIONS[LEAVES[leaf]].model_fields[leaf].description
    return RecipeError(
        f"{leaf}={first['input']} cannot be used: {first['msg'].lower()}.", f"{leaf} is: {help_text}.", ""
    )
