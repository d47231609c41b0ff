"""Deployment catalogue: known keys only, a form with help for every setting, errors with a remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.schema_tools import is_valid_schema
from prefect.utilities.templating import find_placeholders

from deployments import catalogue, register_deployments
from deployments.deployment_recipe import merge_recipe, setting_trees
from deployments.register_deployments import DeploymentOptions
from dpo_core.config.recipe import LEAVES, SECTIONS, Recipe
from dpo_core.config.settings import split_recipe_file
from dpo_core.errors import DPOError, RecipeError
from flows.pipeline import pipeline

POOLS = Path(register_deployments.__file__).parent / "pools"


def entry(name: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    [found] = [entry for entry in (content or catalogue.read())["deployments"] if entry["name"] == name]
    return dict(found)


def test_the_file_has_both_deployments_of_the_flow() -> None:
    assert [(deployment["name"], deployment["entrypoint"]) for deployment in catalogue.read()["deployments"]] == [
        ("on-demand", "flows.pipeline.pipeline"),
        ("nightly", "flows.pipeline.pipeline"),
    ]


def test_an_unknown_key_of_prefect_yaml_is_an_error(tmp_path: Path) -> None:
    content = copy.deepcopy(catalogue.read())
    nightly = content["deployments"][1]
    nightly["schedule_s"] = nightly.pop("schedules")
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=r"schedule_s.*Did you mean schedules\?"):
        catalogue.read(path)


def test_the_form_of_prefects_ui_shows_every_setting_with_its_help_and_limits() -> None:
    deployment: Any = pipeline.to_deployment("form")
    schema = deployment._parameter_openapi_schema.model_dump()
    is_valid_schema(schema)
    definitions = schema["definitions"]
    for section, kind in SECTIONS.items():
        form = definitions[kind.__name__]
        assert definitions["Recipe"]["properties"][section]["$ref"].endswith(kind.__name__)
        assert form["additionalProperties"] is False
        # The form takes angle brackets for HTML and leaves their content out.
        assert not [field.description for field in kind.model_fields.values() if "<" in (field.description or "")]
        assert {name: field["description"] for name, field in form["properties"].items()} == {
            name: field.description for name, field in kind.model_fields.items()
        }
    assert definitions["TrainSettings"]["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    assert "cosine" in definitions["TrainSettings"]["properties"]["lr_schedule"]["enum"]
    assert sum(len(definitions[kind.__name__]["properties"]) for kind in SECTIONS.values()) == len(LEAVES)


def test_settings_are_stored_in_the_deployments_and_activate_the_nightly_one(tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text('model_name = "gpt2"\nlearning_rate = 1e-6\n')
    options = DeploymentOptions(cron="0 3 * * 1-5", timezone="Asia/Tokyo")
    content = register_deployments.read_catalogue(options, recipe, ["seed=7"])
    night = entry("nightly", content)
    assert night["parameters"]["recipe"] == {
        "model": {"model_name": "gpt2"},
        "train": {"learning_rate": 1e-6, "seed": 7},
    }
    assert night["schedules"] == [{"cron": "0 3 * * 1-5", "timezone": "Asia/Tokyo", "active": True}]
    assert entry("on-demand", content)["parameters"] == night["parameters"]
    assert Recipe.model_validate(night["parameters"]["recipe"]).train.seed == 7


def test_the_nightly_deployment_stays_paused_without_a_model() -> None:
    content = register_deployments.read_catalogue(DeploymentOptions(), None, ["seed=7"])
    assert entry("nightly", content)["schedules"][0]["active"] is False


def test_the_command_line_overrides_the_file_and_the_file_the_deployment(tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text("learning_rate = 2e-6\nseed = 2\n")
    path, words = split_recipe_file([str(recipe), "seed=3"])
    own = {"train": {"learning_rate": 1e-6, "seed": 1, "dpo_beta": 0.3}}
    recipe_values = merge_recipe(own, setting_trees(path, words))
    assert recipe_values == {"train": {"learning_rate": 2e-6, "seed": 3, "dpo_beta": 0.3}}


def test_default_values_and_passwords_are_not_sent_to_the_server() -> None:
    assert merge_recipe({"train": {"seed": 1}}, setting_trees(None, ["seed=0"])) == {}
    recipe = merge_recipe({}, setting_trees(None, ["tracking_uri=http://me:secret@host:5000"]))
    assert recipe == {"track": {"tracking_uri": "http://host:5000"}}


@pytest.mark.parametrize(
    ("options", "words", "message"),
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
def test_an_invalid_option_or_setting_is_refused_with_a_suggestion(
    options: dict[str, str], words: list[str], message: str
) -> None:
    with pytest.raises(DPOError, match=message):
        register_deployments.read_catalogue(DeploymentOptions(**options), None, words)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", register_deployments.KINDS)
def test_a_job_template_uses_its_variables_and_no_others(kind: str) -> None:
    template = json.loads((POOLS / f"{kind}.json").read_text())
    properties = template["variables"]["properties"]
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    assert used == set(properties)
    is_valid_schema(template["variables"])
    assert properties["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert kind == "process" or properties["image"]["default"].startswith("dpo-flows:")
