"""A person's approval of a promotion: the flow pauses, Prefect's UI shows a form, and a time limit decides."""

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
from flows.registry.champion import Ask
from flows.registry.gates import Gate, GateReport

POLL_S = 2


class ApprovalForm(RunInput):
    """What the form asks. Its text shows the judgement (see :func:`form`)."""

    approve: bool = Field(default=False, description="Give this version the alias champion.")
    name: str = Field(default="", description="Who says so.")
    note: str = Field(default="", description="Why.")


def asker(rule: PromoteSettings) -> Ask | None:
    """How a person is asked, None when none must be."""
    if not rule.require_approval:
        return None
    minutes = rule.approval_minutes

    def ask(judgement: GateReport) -> Gate:
        """Pause the flow that this runs in until somebody answers or the time is up."""
        announce(judgement, minutes)
        # Without a form of its own for each question the UI would show no words of what is asked.
        form: Any = ApprovalForm.with_initial_data(description=f"{judgement.reason}\n\nShall it become the champion?")
        try:
            return gate(pause_flow_run(wait_for_input=form, timeout=round(minutes * 60), poll_interval=POLL_S))
        except FlowPauseTimeout:
            carry_on()
            return Gate("approval", False, f"nobody approved it within {minutes:g} minutes.")

    return ask


def gate(answer: ApprovalForm) -> Gate:
    """An answer as a gate."""
    who = answer.name or "a person"
    told = f" ({answer.note.rstrip('.')})" if answer.note else ""
    return Gate("approval", answer.approve, f"{who} {'approved' if answer.approve else 'declined'} it{told}.")


def announce(judgement: GateReport, minutes: float) -> None:
    """Say on the terminal and in the flow run's log how to answer."""
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    lines = (
        f"Waiting {minutes:g} minutes for approval: {judgement.reason}",
        f"Answer in the Prefect UI ({flow_run.ui_url}, Resume), or type, with PREFECT_API_URL={api.rstrip('/')}:",
        f"    dpo approve {flow_run.id}    (or --decline)",
    )
    for line in lines:
        print(line, flush=True)
        get_run_logger().info(line)


def carry_on() -> None:
    """Let the flow run on after the time was up; a later answer finds it no longer paused."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, State(type=StateType.RUNNING), force=True)
