"""The members of a sweep: every combination of the values that settings are given.

``learning_rate=1e-6,5e-6`` are two values. A setting whose value is itself a list (``lora_targets``, ``tasks``,
``prompt_column``) keeps its commas and gets its alternatives by being given again:
``lora_targets=all-linear lora_targets=q_proj,v_proj``. Any other setting may be given again too.
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
from dpo_core.config.settings import assignments, is_list, parsed, read_recipe, refused
from dpo_core.errors import RecipeError
from dpo_core.stages.train import NOT_IN_KEY

Axes = dict[str, tuple[str, ...]]

ASIDE = {"track", "promote", "sweep"}


@dataclass(frozen=True, slots=True)
class Member:
    """One combination: its name, which is a file name too, its values, and what it runs."""

    name: str
    values: dict[str, str]
    recipe: Recipe

    @property
    def log_path(self) -> Path:
        """The run's directory."""
        assert self.recipe.train.log_path is not None
        return self.recipe.train.log_path


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep. ``recipe`` is that of its first member, ``place`` where its members' runs and notes lie."""

    recipe: Recipe
    axes: Axes
    place: Path
    fingerprint: str
    members: tuple[Member, ...]


def read(recipe_file: Path | None, words: Iterable[str]) -> tuple[Recipe, Axes]:
    """The first member's recipe and the axes, from a file and what was typed.

    Raises RecipeError as for a run, and for a setting that cannot vary.
    """
    fixed, axes = split(assignments(words))
    first = [f"{leaf}={values[0]}" for leaf, values in axes.items()]
    return read_recipe(recipe_file, [*fixed, *first]), axes


def split(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], Axes]:
    """Assignments of one value, and settings of several."""
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        leaf = name.rpartition(".")[2]
        alone = leaf not in LEAVES or is_list(leaf)  # an unknown name is refused with the others
        given.setdefault(name if leaf not in LEAVES else leaf, []).extend([value] if alone else value.split(","))
    fixed = [f"{leaf}={values[0]}" for leaf, values in given.items() if len(values) == 1]
    return fixed, {leaf: tuple(value.strip() for value in told) for leaf, told in given.items() if len(told) > 1}


def plan(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> SweepPlan:
    """Every member of a sweep, valid as a recipe.

    Raises RecipeError when nothing varies, or something that cannot, or two members are the same.
    """
    if not axes:
        raise RecipeError("Nothing varies.", "A sweep has a setting of several values.", "learning_rate=1e-6,5e-6")
    refuse(recipe, axes)
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    recipes = [varied(recipe, values) for values in combinations]
    known = [what(one) for one in recipes]
    if twice := next((index for index, one in enumerate(known) if one in known[:index]), None):
        raise RecipeError(f"{name_of(combinations[twice])} is there twice.", "Members differ.", "Leave one out.")
    key = fingerprint.of_value(known)
    place = (recipe.track.runs_dir / "sweeps" / key[:12]).expanduser().resolve()
    members = [
        Member(name_of(values), values, placed(one, place / name_of(values)))
        for values, one in zip(combinations, recipes, strict=True)
    ]
    return SweepPlan(recipe, {leaf: tuple(values) for leaf, values in axes.items()}, place, key, tuple(members))


def refuse(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> None:
    """Raises RecipeError for what members must have in common, or have for themselves."""
    for leaf in axes:
        if leaf not in LEAVES:
            read_recipe(None, [f"{leaf}=0"])  # says which name is near
        if LEAVES[leaf] in ASIDE or leaf in NOT_IN_KEY:
            raise RecipeError(
                f"{leaf} cannot vary in a sweep.", "Members differ in what they compute.", f"Give {leaf} one value."
            )
    if recipe.train.log_path:
        raise RecipeError("log_path is given.", "Every member of a sweep has its own.", "Leave it out.")


def varied(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with these values.

    Raises RecipeError for one that cannot be.
    """
    tree: dict[str, Any] = recipe.model_dump()
    for leaf, value in values.items():
        tree[LEAVES[leaf]][leaf] = parsed(leaf, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise refused(error) from None


def placed(recipe: Recipe, log_path: Path) -> Recipe:
    """A member's recipe with its directory; it is the sweep that promotes, and tells where MLflow is."""
    train = recipe.train.model_copy(update={"log_path": log_path, "behavior_if_log_dir_exists": "ask"})
    promote = recipe.promote.model_copy(update={"auto_promote": False, "require_approval": False})
    track = recipe.track.model_copy(update={"tracking_uri": None, "runs_dir": recipe.track.runs_dir.resolve()})
    return recipe.model_copy(update={"train": train, "promote": promote, "track": track})


def what(recipe: Recipe) -> dict[str, Any]:
    """What a recipe computes, as JSON values."""
    told: dict[str, Any] = json.loads(recipe.model_dump_json(exclude=ASIDE))
    told["train"] = {leaf: value for leaf, value in told["train"].items() if leaf not in NOT_IN_KEY}
    return told


def name_of(values: Mapping[str, str]) -> str:
    """A member's name from its values, safe as a file name."""
    return re.sub(r"[^\w.,=+-]+", "_", " ".join(f"{leaf}={value}" for leaf, value in values.items()))
