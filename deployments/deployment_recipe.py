"""A deployment's recipe: its own settings under those that are given, refused before they reach the server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import public
from dpo_core.config.settings import Tree, from_toml, from_words, put, refused


def trees(recipe_file: Path | None, words: Sequence[str]) -> list[Tree]:
    """What a file and the command line say, the command line last."""
    return [*([from_toml(recipe_file)] if recipe_file else []), from_words(words)]


def merged(own: dict[str, dict[str, Any]], given: list[Tree]) -> dict[str, dict[str, Any]]:
    """The recipe as JSON with what differs from the defaults, later trees before earlier ones and all before its own.

    Raises RecipeError for a setting that does not exist, naming the nearest, or a value that it cannot have.
    """
    tree: Tree = {}
    for section, leaves in own.items():
        for leaf, value in leaves.items():
            put(tree, f"{section}.{leaf}", value, "the deployment's recipe")
    for later in given:
        for section, leaves in later.items():
            tree.setdefault(section, {}).update(leaves)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise refused(error) from None
    whole, differs = public(recipe), recipe.model_dump(mode="json", exclude_defaults=True)
    return {section: {leaf: whole[section][leaf] for leaf in leaves} for section, leaves in differs.items()}
