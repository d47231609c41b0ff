"""``dpo approve``: the answer to a flow that waits for a person, which Prefect's own command line cannot give."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from dpo_core.errors import RecipeError
from flows import prefect_setup


def approve(flow_run: str | None, answer: Mapping[str, Any]) -> None:
    """Answer a paused flow, or list those that wait.

    Raises RecipeError when none waits, or this one does not; TrackingError when the server does not answer.
    """
    prefect_setup.check_prefect()
    with get_client(sync_client=True) as client:
        if flow_run is None:
            return listed(client)
        found = read(client, flow_run)
        if not found.state or not found.state.is_paused():
            state = found.state.name if found.state else "unknown"
            raise RecipeError(
                f"The flow run {found.name} does not wait for an answer (it is {state}).",
                "Only a paused one does, until its time is up.",
                "dpo promote VERSION decides by hand.",
            )
        client.resume_flow_run(found.id, run_input=dict(answer))
    print(f"{found.name}: {'approved' if answer['approve'] else 'declined'}.")


def read(client: SyncPrefectClient, text: str) -> FlowRun:
    """A flow run by its id.

    Raises RecipeError when there is none.
    """
    try:
        return client.read_flow_run(UUID(text))
    except (ValueError, ObjectNotFound):
        raise RecipeError(
            f"There is no flow run {text!r} at {client.api_url}.",
            "PREFECT_API_URL names the server; the flow printed its address and its id.",
            "dpo approve lists those that wait.",
        ) from None


def listed(client: SyncPrefectClient) -> None:
    """Print the flow runs that wait.

    Raises RecipeError when none does.
    """
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    found = client.read_flow_runs(flow_run_filter=paused)
    if not found:
        raise RecipeError(f"No flow run waits at {client.api_url}.", "", "PREFECT_API_URL names the server.")
    for run in found:
        timeout = run.state.state_details.pause_timeout if run.state else None
        left = f", {(timeout.timestamp() - time.time()) / 60:.0f} minutes left" if timeout else ""
        print(f"{run.id}  {run.name}{left}")
