"""``dpo submit``: a run of a deployment, its settings checked here before the server hears of them."""

from collections.abc import Sequence
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from deployments.deployment_recipe import merged, trees
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import TrackingError

FLOW = "dpo"


def submit(client: SyncPrefectClient, name: str, recipe_file: Path | None, words: Sequence[str]) -> FlowRun:
    """Ask for a run of ``dpo/<name>`` with the deployment's recipe under these settings.

    Raises RecipeError for a setting or value that cannot be, TrackingError for a deployment that is not there.
    """
    try:
        deployment = client.read_deployment_by_name(f"{FLOW}/{name}")
    except ObjectNotFound:
        names = [found.name for found in client.read_deployments()]
        raise TrackingError(
            f"There is no deployment {FLOW}/{name} on this server.",
            "dpo deploy registers them.",
            did_you_mean_or_list(name, sorted(names), "Deployments"),
        ) from None
    recipe = merged(deployment.parameters.get("recipe", {}), trees(recipe_file, words))
    return client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": recipe})
