"""The deployments as files say them: known keys only, a form that explains itself, refusals with a remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.schema_tools import is_valid_schema
from prefect.utilities.templating import find_placeholders

from deployments import catalogue, register_deployments
from deployments.deployment_recipe import merged, trees
from deployments.register_deployments import DeploymentOptions
from dpo_core.config.recipe import LEAVES, SECTIONS, Recipe
from dpo_core.config.settings import split_recipe_file
from dpo_core.errors import DPOError, RecipeError
from flows.pipeline import pipeline

POOLS = Path(register_deployments.__file__).parent / "pools"


def entry(name: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
    [found] = [one for one in (told or catalogue.read())["deployments"] if one["name"] == name]
    return dict(found)


def test_the_file_has_both_deployments_of_the_flow() -> None:
    assert [(one["name"], one["entrypoint"]) for one in catalogue.read()["deployments"]] == [
        ("on-demand", "flows.pipeline.pipeline"),
        ("nightly", "flows.pipeline.pipeline"),
    ]


def test_a_misspelt_key_which_prefect_would_drop_is_an_error(tmp_path: Path) -> None:
    told = copy.deepcopy(catalogue.read())
    told["deployments"][1]["schedule_s"] = told["deployments"][1].pop("schedules")
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(RecipeError, match=r"schedule_s.*Did you mean schedules\?"):
        catalogue.read(path)


def test_the_form_of_prefects_ui_shows_every_setting_with_its_help_and_limits() -> None:
    deployment: Any = pipeline.to_deployment("form")
    schema = deployment._parameter_openapi_schema.model_dump()
    is_valid_schema(schema)
    definitions = schema["definitions"]
    for section, kind in SECTIONS.items():
        shown = definitions[kind.__name__]
        assert definitions["Recipe"]["properties"][section]["$ref"].endswith(kind.__name__)
        assert shown["additionalProperties"] is False
        # The form takes what is in angle brackets for HTML, and leaves it out.
        assert not [field.description for field in kind.model_fields.values() if "<" in (field.description or "")]
        assert {name: found["description"] for name, found in shown["properties"].items()} == {
            name: field.description for name, field in kind.model_fields.items()
        }
    assert definitions["TrainSettings"]["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    assert "cosine" in definitions["TrainSettings"]["properties"]["lr_schedule"]["enum"]
    assert sum(len(definitions[kind.__name__]["properties"]) for kind in SECTIONS.values()) == len(LEAVES)


def test_settings_become_the_deployments_own_and_start_the_nightly_one(tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text('model_name = "gpt2"\nlearning_rate = 1e-6\n')
    told = register_deployments.wanted(DeploymentOptions(cron="0 3 * * 1-5", timezone="Asia/Tokyo"), recipe, ["seed=7"])
    night = entry("nightly", told)
    assert night["parameters"]["recipe"] == {
        "model": {"model_name": "gpt2"},
        "train": {"learning_rate": 1e-6, "seed": 7},
    }
    assert night["schedules"] == [{"cron": "0 3 * * 1-5", "timezone": "Asia/Tokyo", "active": True}]
    assert entry("on-demand", told)["parameters"] == night["parameters"]
    assert Recipe.model_validate(night["parameters"]["recipe"]).train.seed == 7


def test_without_a_model_the_nightly_one_stays_paused() -> None:
    assert (
        entry("nightly", register_deployments.wanted(DeploymentOptions(), None, ["seed=7"]))["schedules"][0]["active"]
        is False
    )


def test_the_command_line_goes_before_the_file_and_the_file_before_the_deployment(tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text("learning_rate = 2e-6\nseed = 2\n")
    path, words = split_recipe_file([str(recipe), "seed=3"])
    own = {"train": {"learning_rate": 1e-6, "seed": 1, "dpo_beta": 0.3}}
    assert merged(own, trees(path, words)) == {"train": {"learning_rate": 2e-6, "seed": 3, "dpo_beta": 0.3}}


def test_a_setting_back_at_its_default_and_a_password_do_not_reach_the_server() -> None:
    assert merged({"train": {"seed": 1}}, trees(None, ["seed=0"])) == {}
    told = merged({}, trees(None, ["tracking_uri=http://me:secret@host:5000"]))
    assert told == {"track": {"tracking_uri": "http://host:5000"}}


@pytest.mark.parametrize(
    ("wishes", "words", "message"),
    [
        ({}, ["learning_rat=1"], r"learning_rat.*Did you mean learning_rate\?"),
        ({}, ["learning_rate=-1"], "learning_rate=-1 cannot be used"),
        ({}, ["loss=ipo", "label_smoothing=0.1"], "label_smoothing has no meaning"),
        ({"cron": "every night"}, [], "cron 'every night' is not a schedule.*five fields"),
        ({"cron": "99 4 * * *"}, [], "cron '99 4"),
        ({"timezone": "Europe/Berln"}, [], r"Did you mean Europe/Berlin\?"),
        ({"timezone": "new york"}, [], r"Did you mean America/New_York\?"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_right_one(
    wishes: dict[str, str], words: list[str], message: str
) -> None:
    with pytest.raises(DPOError, match=message):
        register_deployments.wanted(DeploymentOptions(**wishes), None, words)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", register_deployments.KINDS)
def test_a_job_template_uses_its_variables_and_no_others(kind: str) -> None:
    template = json.loads((POOLS / f"{kind}.json").read_text())
    properties = template["variables"]["properties"]
    used = {place.name for place in find_placeholders(template["job_configuration"])}
    assert used == set(properties)
    is_valid_schema(template["variables"])
    assert properties["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert kind == "process" or properties["image"]["default"].startswith("dpo-flows:")
