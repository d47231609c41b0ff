"""Approval of a paused flow run (``dpo approve``), which Prefect's own command line cannot give."""

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


def approve(flow_run: str | None, decision: Mapping[str, Any]) -> None:
    """Resume a paused flow run with ``decision`` (approve, name, note), or list paused ones if ``flow_run`` is None.

    Raises RecipeError when the flow run does not exist or is not paused, or when there is nothing to list;
    TrackingError when the server does not answer.
    """
    prefect_setup.check_prefect()
    with get_client(sync_client=True) as client:
        if flow_run is None:
            return print_waiting(client)
        found = find_flow_run(client, flow_run)
        if not found.state or not found.state.is_paused():
            state = found.state.name if found.state else "unknown"
            raise RecipeError(
                f"The flow run {found.name} does not wait for approval (its state is {state}).",
                "Only a paused flow run can be approved or declined, until its approval time ends.",
                "To decide by hand, run dpo promote VERSION.",
            )
        client.resume_flow_run(found.id, run_input=dict(decision))
    print(f"{found.name}: {'approved' if decision['approve'] else 'declined'}.")


def find_flow_run(client: SyncPrefectClient, text: str) -> FlowRun:
    """The flow run with the id ``text``.

    Raises RecipeError when the server has none.
    """
    try:
        return client.read_flow_run(UUID(text))
    except (ValueError, ObjectNotFound):
        raise RecipeError(
            f"There is no flow run {text!r} at {client.api_url}.",
            "PREFECT_API_URL sets the server. The flow printed the server's address and its own id.",
            "To list the flow runs that wait for approval, run dpo approve.",
        ) from None


def print_waiting(client: SyncPrefectClient) -> None:
    """Print the paused flow runs and how long each still waits.

    Raises RecipeError when none is paused.
    """
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    found = client.read_flow_runs(flow_run_filter=paused)
    if not found:
        raise RecipeError(
            f"No flow run waits for approval at {client.api_url}.", "", "To ask another server, set PREFECT_API_URL."
        )
    for run in found:
        timeout = run.state.state_details.pause_timeout if run.state else None
        left = f", {(timeout.timestamp() - time.time()) / 60:.0f} minutes left" if timeout else ""
        print(f"{run.id}  {run.name}{left}")
