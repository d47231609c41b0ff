"""The deployments of prefect.yaml, with what the command line asks of them, checked before anything runs."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import yaml  # type: ignore[import-untyped]
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from deployments.deployment_recipe import merged, trees
from dpo_core.config.recipe import Recipe
from dpo_core.config.spelling import close_matches, did_you_mean
from dpo_core.errors import RecipeError

CATALOGUE = Path(__file__).parent / "prefect.yaml"

Entry = dict[str, Any]


def read(path: Path = CATALOGUE) -> dict[str, Any]:
    """The file, whose keys are all known to Prefect (which would silently drop others).

    Raises RecipeError naming the nearest right spelling.
    """
    told: dict[str, Any] = yaml.safe_load(path.read_text())
    known = {field.alias or name for name, field in PrefectYamlModel.model_fields.items()}
    check_names(told, known, path.name)
    for entry in told["deployments"]:
        check_names(entry, set(DeploymentConfig.model_fields), f"{path.name}, deployment {entry.get('name')}")
    PrefectYamlModel.model_validate(copy.deepcopy(told))
    return told


def check_names(there: Iterable[str], known: set[str], where: str) -> None:
    """Raises RecipeError for a name that means nothing."""
    for name in there:
        if name not in known:
            raise RecipeError(
                f"Unknown key {name!r} in {where}.",
                "Prefect would ignore it.",
                did_you_mean(name, known, f"Keys are {', '.join(sorted(known))}."),
            )


def with_recipe(entry: Entry, recipe_file: Path | None, words: Sequence[str]) -> Entry:
    """The deployment with a recipe of its own, under the file's and the command line's settings.

    A schedule that nobody switched on starts when the recipe names a model: without one every run would fail.
    """
    told = merged(entry["parameters"]["recipe"], trees(recipe_file, words))
    made = copy.deepcopy(entry) | {"parameters": {"recipe": told}}
    for schedule in made.get("schedules", []):
        schedule["active"] = schedule.get("active", True) or bool(Recipe.model_validate(told).model.model_name)
    return made


def with_schedule(entry: Entry, cron: str | None, timezone: str | None) -> Entry:
    """The deployment with another time for its schedules; one without schedules stays so."""
    made = copy.deepcopy(entry)
    for schedule in made.get("schedules", []):
        schedule["cron"] = cron or schedule["cron"]
        schedule["timezone"] = timezone or schedule["timezone"]
        check_schedule(schedule["cron"], schedule["timezone"])
    return made


def check_schedule(cron: str, timezone: str) -> None:
    """Raises RecipeError for a time zone that does not exist, or a cron expression that is none."""
    zones = available_timezones()
    if timezone not in zones:
        raise RecipeError(
            f"There is no time zone {timezone!r}.",
            "A schedule's time zone is a name of the IANA database, such as Europe/Berlin or UTC.",
            nearest_zone(timezone, zones),
        )
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise RecipeError(
            f"cron {cron!r} is not a schedule: {error.errors()[0]['msg'].removeprefix('Value error, ').rstrip('.')}.",
            "It has five fields: minute, hour, day of the month, month, day of the week.",
            "Half past four every night is '30 4 * * *'.",
        ) from None


def nearest_zone(timezone: str, zones: set[str]) -> str:
    """The zone that is meant, whatever its letters' case or its continent."""
    by_folded = {zone.casefold(): zone for zone in zones} | {
        zone.rpartition("/")[2].casefold(): zone for zone in sorted(zones, reverse=True)
    }
    near = close_matches(timezone.casefold().replace(" ", "_"), by_folded)
    return f"Did you mean {by_folded[near[0]]}?" if near else "Name one as in /usr/share/zoneinfo."


def with_pool(entry: Entry, pool: str | None) -> Entry:
    """The deployment in another work pool."""
    return entry | {"work_pool": entry["work_pool"] | {"name": pool or entry["work_pool"]["name"]}}
