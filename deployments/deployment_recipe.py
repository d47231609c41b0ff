"""Deployment recipe: a deployment's own settings with overrides, validated before they reach the server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import redacted
from dpo_core.config.settings import Tree, from_toml, from_words, invalid_setting, set_leaf


def setting_trees(recipe_file: Path | None, words: Sequence[str]) -> list[Tree]:
    """The settings of a recipe file and of the command line, in that order."""
    return [*([from_toml(recipe_file)] if recipe_file else []), from_words(words)]


def merge_recipe(own: dict[str, dict[str, Any]], overrides: list[Tree]) -> dict[str, dict[str, Any]]:
    """The recipe as JSON values, without those that equal the default. Later overrides win; all win over ``own``.

    Raises RecipeError for a setting that does not exist or a value that is not allowed.
    """
    tree: Tree = {}
    for section, leaves in own.items():
        for leaf, value in leaves.items():
            set_leaf(tree, f"{section}.{leaf}", value, "the deployment's recipe")
    for override in overrides:
        for section, leaves in override.items():
            tree.setdefault(section, {}).update(leaves)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise invalid_setting(error) from None
    values, changed = redacted(recipe), recipe.model_dump(mode="json", exclude_defaults=True)
    return {section: {leaf: values[section][leaf] for leaf in leaves} for section, leaves in changed.items()}
