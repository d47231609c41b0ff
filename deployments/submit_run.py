"""Submission of a run of a deployment (``dpo submit``), its settings validated before the server is asked."""

from collections.abc import Sequence
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from deployments.deployment_recipe import merge_recipe, setting_trees
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import TrackingError

FLOW = "dpo"


def submit(client: SyncPrefectClient, name: str, recipe_file: Path | None, words: Sequence[str]) -> FlowRun:
    """Create a run of ``dpo/<name>``: the deployment's recipe overridden by the given settings.

    Raises RecipeError for an unknown setting or a value that is not allowed, TrackingError for an unknown deployment.
    """
    try:
        deployment = client.read_deployment_by_name(f"{FLOW}/{name}")
    except ObjectNotFound:
        names = [deployment.name for deployment in client.read_deployments()]
        raise TrackingError(
            f"There is no deployment {FLOW}/{name} on this server.",
            "Deployments are registered by dpo deploy.",
            did_you_mean_or_list(name, sorted(names), "Deployments"),
        ) from None
    recipe = merge_recipe(deployment.parameters.get("recipe", {}), setting_trees(recipe_file, words))
    return client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": recipe})
