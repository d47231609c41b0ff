"""Deployment catalogue: the deployments of prefect.yaml, changed and checked as the command line says."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import yaml  # type: ignore[import-untyped]
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from deployments.deployment_recipe import merge_recipe, setting_trees
from dpo_core.config.recipe import Recipe
from dpo_core.config.spelling import close_matches, did_you_mean
from dpo_core.errors import RecipeError

CATALOGUE = Path(__file__).parent / "prefect.yaml"

Entry = dict[str, Any]


def read(path: Path = CATALOGUE) -> dict[str, Any]:
    """The content of prefect.yaml.

    Raises RecipeError for a key that Prefect does not know and would silently drop.
    """
    catalogue: dict[str, Any] = yaml.safe_load(path.read_text())
    known_keys = {field.alias or name for name, field in PrefectYamlModel.model_fields.items()}
    check_names(catalogue, known_keys, path.name)
    for entry in catalogue["deployments"]:
        check_names(entry, set(DeploymentConfig.model_fields), f"{path.name}, deployment {entry.get('name')}")
    PrefectYamlModel.model_validate(copy.deepcopy(catalogue))
    return catalogue


def check_names(names: Iterable[str], known_keys: set[str], location: str) -> None:
    """Raises RecipeError for a name that is not among ``known_keys``."""
    for name in names:
        if name not in known_keys:
            raise RecipeError(
                f"Unknown key {name!r} in {location}.",
                "Prefect would ignore it.",
                did_you_mean(name, known_keys, f"Keys are {', '.join(sorted(known_keys))}."),
            )


def with_recipe(entry: Entry, recipe_file: Path | None, words: Sequence[str]) -> Entry:
    """The deployment with the settings of a recipe file and of the command line merged into its recipe.

    An inactive schedule becomes active when the recipe names a model: without one every run would fail.
    """
    catalogue = merge_recipe(entry["parameters"]["recipe"], setting_trees(recipe_file, words))
    changed = copy.deepcopy(entry) | {"parameters": {"recipe": catalogue}}
    for schedule in changed.get("schedules", []):
        schedule["active"] = schedule.get("active", True) or bool(Recipe.model_validate(catalogue).model.model_name)
    return changed


def with_schedule(entry: Entry, cron: str | None, timezone: str | None) -> Entry:
    """The deployment with its schedules changed, if it has any; None keeps the cron expression or the time zone."""
    changed = copy.deepcopy(entry)
    for schedule in changed.get("schedules", []):
        schedule["cron"] = cron or schedule["cron"]
        schedule["timezone"] = timezone or schedule["timezone"]
        check_schedule(schedule["cron"], schedule["timezone"])
    return changed


def check_schedule(cron: str, timezone: str) -> None:
    """Raises RecipeError for a time zone that does not exist, or an invalid cron expression."""
    timezones = available_timezones()
    if timezone not in timezones:
        raise RecipeError(
            f"There is no time zone {timezone!r}.",
            "A schedule's time zone is a name of the IANA database, such as Europe/Berlin or UTC.",
            suggest_timezone(timezone, timezones),
        )
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise RecipeError(
            f"cron {cron!r} is not a schedule: {error.errors()[0]['msg'].removeprefix('Value error, ').rstrip('.')}.",
            "It has five fields: minute, hour, day of the month, month, day of the week.",
            "Half past four every night is '30 4 * * *'.",
        ) from None


def suggest_timezone(timezone: str, timezones: set[str]) -> str:
    """A remedy that names the nearest time zone, ignoring case and continent."""
    by_folded = {name.casefold(): name for name in timezones} | {
        name.rpartition("/")[2].casefold(): name for name in sorted(timezones, reverse=True)
    }
    matches = close_matches(timezone.casefold().replace(" ", "_"), by_folded)
    return f"Did you mean {by_folded[matches[0]]}?" if matches else "Their names are the paths in /usr/share/zoneinfo."


def with_pool(entry: Entry, pool: str | None) -> Entry:
    """The deployment in another work pool; None keeps its own."""
    return entry | {"work_pool": entry["work_pool"] | {"name": pool or entry["work_pool"]["name"]}}
