"""Serving the deployments from this process (``dpo serve``), without a work pool and a worker."""

from typing import Any

from prefect import serve as prefect_serve
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from flows.pipeline import pipeline


def serve(catalogue: dict[str, Any], limit: int) -> None:
    """Register the catalogue's deployments and run scheduled and submitted runs until Ctrl-C."""
    deployments = [to_runner_deployment(entry) for entry in catalogue["deployments"]]
    prefect_serve(*deployments, limit=limit, print_starting_message=False)


def to_runner_deployment(entry: dict[str, Any]) -> RunnerDeployment:
    """A deployment of the catalogue in the form that Prefect serves."""
    deployment = pipeline.to_deployment(
        name=entry["name"],
        description=entry["description"],
        tags=entry["tags"],
        parameters=entry["parameters"],
        schedules=[
            DeploymentScheduleCreate(
                schedule=CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]), active=schedule["active"]
            )
            for schedule in entry.get("schedules", [])
        ],
        triggers=[DeploymentEventTrigger.model_validate(trigger) for trigger in entry.get("triggers", [])],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # to_deployment returns a coroutine only inside an event loop
    return deployment
