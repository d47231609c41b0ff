"""``dpo serve``: the deployments without work pool and worker, their runs started from this process."""

from typing import Any

from prefect import serve as prefect_serve
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from flows.pipeline import pipeline


def serve(told: dict[str, Any], limit: int) -> None:
    """Register the catalogue's deployments and run what is scheduled or asked for, until Ctrl-C."""
    prefect_serve(*(served(entry) for entry in told["deployments"]), limit=limit, print_starting_message=False)


def served(entry: dict[str, Any]) -> RunnerDeployment:
    """One deployment, as Prefect serves it."""
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
    assert isinstance(deployment, RunnerDeployment)  # a coroutine only inside of an event loop
    return deployment
