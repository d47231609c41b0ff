"""Approval of a promotion by a person: the flow pauses, Prefect's UI shows a form, and no response in time declines."""

from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from dpo_core.config.recipe import PromoteSettings
from flows.registry.champion import RequestApproval
from flows.registry.gates import Gate, GateReport

POLL_S = 2


class ApprovalForm(RunInput):
    """The form's fields; its description is set for each request."""

    approve: bool = Field(default=False, description="Give this version the alias champion.")
    name: str = Field(default="", description="Your name.")
    note: str = Field(default="", description="Your reason.")


def approval_request(rule: PromoteSettings) -> RequestApproval | None:
    """Return the function that requests approval, or None when ``require_approval`` is off."""
    if not rule.require_approval:
        return None
    minutes = rule.approval_minutes

    def request(report: GateReport) -> Gate:
        """Pause the current flow until the form is submitted or the time is up."""
        print_instructions(report, minutes)
        # The UI shows the description only when the form is built for this request.
        form: Any = ApprovalForm.with_initial_data(description=f"{report.reason}\n\nShall it become the champion?")
        try:
            return approval_gate(pause_flow_run(wait_for_input=form, timeout=round(minutes * 60), poll_interval=POLL_S))
        except FlowPauseTimeout:
            resume_flow()
            return Gate("approval", False, f"nobody approved it within {minutes:g} minutes.")

    return request


def approval_gate(form: ApprovalForm) -> Gate:
    """Return the gate that a submitted form stands for."""
    name = form.name or "a person"
    note = f" ({form.note.rstrip('.')})" if form.note else ""
    return Gate("approval", form.approve, f"{name} {'approved' if form.approve else 'declined'} it{note}.")


def print_instructions(report: GateReport, minutes: float) -> None:
    """Print on the terminal and write to the flow run's log how to respond."""
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    lines = (
        f"Waiting {minutes:g} minutes for approval: {report.reason}",
        f"Respond in the Prefect UI ({flow_run.ui_url}, Resume), or run, with PREFECT_API_URL={api.rstrip('/')}:",
        f"    dpo approve {flow_run.id}    (or --decline)",
    )
    for line in lines:
        print(line, flush=True)
        get_run_logger().info(line)


def resume_flow() -> None:
    """Set the paused flow run to RUNNING after the time limit, so that a late response is refused."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, State(type=StateType.RUNNING), force=True)
