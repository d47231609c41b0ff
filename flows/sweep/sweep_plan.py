"""Plan of a sweep: a member for every combination of the values that settings are given.

``learning_rate=1e-6,5e-6`` gives two values. A setting whose value is itself a list (``lora_targets``, ``tasks``,
``prompt_column``) keeps its commas and is repeated for each alternative:
``lora_targets=all-linear lora_targets=q_proj,v_proj``. Any other setting may be repeated too.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import LEAVES, Recipe
from dpo_core.config.settings import assignments, invalid_setting, is_list, parse_value, read_recipe
from dpo_core.errors import RecipeError
from dpo_core.stages.train import NOT_IN_KEY, SECTIONS_NOT_IN_KEY

Axes = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Member:
    """A combination of values, its recipe, and its name, which is a file name too."""

    name: str
    values: dict[str, str]
    recipe: Recipe

    @property
    def log_path(self) -> Path:
        """The directory of the member's run."""
        assert self.recipe.train.log_path is not None
        return self.recipe.train.log_path


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep. ``recipe`` is the first member's; ``directory`` holds the members' runs and logs."""

    recipe: Recipe
    axes: Axes
    directory: Path
    fingerprint: str
    members: tuple[Member, ...]


def read_sweep(recipe_file: Path | None, words: Iterable[str]) -> tuple[Recipe, Axes]:
    """The first member's recipe and the axes, from a recipe file and the words of the command line.

    Raises RecipeError as :func:`dpo_core.config.settings.read_recipe` does.
    """
    fixed, axes = split_axes(assignments(words))
    first = [f"{leaf}={values[0]}" for leaf, values in axes.items()]
    return read_recipe(recipe_file, [*fixed, *first]), axes


def split_axes(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], Axes]:
    """The assignments with one value (as ``name=value``), and the axes: the settings with several values."""
    values_by_name: dict[str, list[str]] = {}
    for name, value in pairs:
        leaf = name.rpartition(".")[2]
        single = leaf not in LEAVES or is_list(leaf)  # unknown names are refused in check_axes
        values_by_name.setdefault(name if leaf not in LEAVES else leaf, []).extend(
            [value] if single else value.split(",")
        )
    fixed = [f"{leaf}={values[0]}" for leaf, values in values_by_name.items() if len(values) == 1]
    several = {leaf: values for leaf, values in values_by_name.items() if len(values) > 1}
    return fixed, {leaf: tuple(value.strip() for value in values) for leaf, values in several.items()}


def plan_sweep(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> SweepPlan:
    """The plan of a sweep, with a valid recipe for every member.

    Raises RecipeError when no setting varies, when one varies that must not, when a value is invalid, or when two
    members compute the same.
    """
    if not axes:
        raise RecipeError(
            "No setting of the sweep varies.",
            "At least one setting must have several values.",
            "For example: learning_rate=1e-6,5e-6",
        )
    check_axes(recipe, axes)
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    recipes = [with_values(recipe, values) for values in combinations]
    computed = [computed_settings(member_recipe) for member_recipe in recipes]
    if twice := next((index for index, settings in enumerate(computed) if settings in computed[:index]), None):
        raise RecipeError(
            f"{member_name(combinations[twice])} is given twice.", "Members must differ.", "Leave out one of the two."
        )
    key = fingerprint.of_value(computed)
    directory = (recipe.track.runs_dir / "sweeps" / key[:12]).expanduser().resolve()
    members = [
        Member(member_name(values), values, with_log_path(member_recipe, directory / member_name(values)))
        for values, member_recipe in zip(combinations, recipes, strict=True)
    ]
    return SweepPlan(recipe, {leaf: tuple(values) for leaf, values in axes.items()}, directory, key, tuple(members))


def check_axes(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> None:
    """Raises RecipeError for an unknown setting, one that all members share, and ``log_path``."""
    for leaf in axes:
        if leaf not in LEAVES:
            read_recipe(None, [f"{leaf}=0"])  # raises with the nearest right spelling
        if LEAVES[leaf] in SECTIONS_NOT_IN_KEY or leaf in NOT_IN_KEY:
            raise RecipeError(
                f"{leaf} cannot vary in a sweep.",
                "Only settings that change what a run computes can vary.",
                f"Give {leaf} one value.",
            )
    if recipe.train.log_path:
        raise RecipeError(
            f"log_path={recipe.train.log_path} is given.",
            "A sweep sets log_path for every member.",
            "Leave log_path out.",
        )


def with_values(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with these values.

    Raises RecipeError for an invalid value.
    """
    tree: dict[str, Any] = recipe.model_dump()
    for leaf, value in values.items():
        tree[LEAVES[leaf]][leaf] = parse_value(leaf, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error) from None


def with_log_path(recipe: Recipe, log_path: Path) -> Recipe:
    """A member's recipe with its run directory; promotion and the MLflow address are left to the sweep."""
    train = recipe.train.model_copy(update={"log_path": log_path, "behavior_if_log_dir_exists": "ask"})
    promote = recipe.promote.model_copy(update={"auto_promote": False, "require_approval": False})
    track = recipe.track.model_copy(update={"tracking_uri": None, "runs_dir": recipe.track.runs_dir.resolve()})
    return recipe.model_copy(update={"train": train, "promote": promote, "track": track})


def computed_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that change what a run computes, by section, as JSON values."""
    settings: dict[str, Any] = json.loads(recipe.model_dump_json(exclude=SECTIONS_NOT_IN_KEY))
    settings["train"] = {leaf: value for leaf, value in settings["train"].items() if leaf not in NOT_IN_KEY}
    return settings


def member_name(values: Mapping[str, str]) -> str:
    """A member's name from its values, safe as a file name."""
    return re.sub(r"[^\w.,=+-]+", "_", " ".join(f"{leaf}={value}" for leaf, value in values.items()))
