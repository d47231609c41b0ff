"""Prefect automations: reschedule a run whose worker is gone, and notify a webhook of failures."""

from datetime import timedelta
from typing import cast

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

WEBHOOK_VARIABLE = "FAILURE_WEBHOOK_URL"
HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_TIMEOUT = timedelta(seconds=90)
WEBHOOK_BLOCK = "dpo-failures"
ABANDONED = "Abandoned"
DPO_TAG = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.dpo"})
ANY_RUN = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
# After one of these events a run is known to be alive, or over.
SIGNS_OF_LIFE = ("Completed", "Failed", "Cancelled", "Crashed", "Cancelling", "Paused", "Suspended", ABANDONED)
PAYLOAD = """{
  "text": "{{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }}",
  "run": "{{ flow_run | ui_url }}"
}"""


def mark_abandoned(timeout: timedelta = HEARTBEAT_TIMEOUT) -> AutomationCore:
    """The automation that sets a run to the crashed state ``Abandoned`` when no heartbeat arrives for ``timeout``.

    A finished run keeps its state even if its last event was lost: the server's rules refuse to crash it.
    """
    return AutomationCore(
        name="dpo: a run that is not heard of is abandoned",
        description="Its worker seems to be gone.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{name}" for name in SIGNS_OF_LIFE)},
            match=ANY_RUN,
            match_related=DPO_TAG,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timeout,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=ABANDONED,
                message=f"No heartbeat for {timeout.total_seconds():.0f} s: its worker seems to be gone.",
            )
        ],
    )


def reschedule_abandoned() -> AutomationCore:
    """The automation that schedules an abandoned run again: another worker continues it from its checkpoint."""
    return AutomationCore(
        name="dpo: an abandoned run goes to another worker",
        description="The run continues from its last checkpoint.",
        trigger=on_states(ABANDONED),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name="AwaitingRetry", message="Waiting for another worker to continue it."
            )
        ],
    )


def on_states(*states: str) -> EventTrigger:
    """The trigger for a run with the tag ``dpo`` that enters one of these states."""
    return EventTrigger(
        expect={f"prefect.flow-run.{state}" for state in states},
        match=ANY_RUN,
        match_related=DPO_TAG,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def notify_failures(webhook: str) -> AutomationCore:
    """The automation that posts a failed or crashed run to a webhook. ``webhook``: id of its Prefect block."""
    return AutomationCore(
        name="dpo: a failed run is told",
        description="Posts the run's name, state, message and page.",
        trigger=on_states("Failed", "Crashed", "TimedOut"),
        actions=[CallWebhook(block_document_id=webhook, payload=PAYLOAD)],
    )


def ensure(client: SyncPrefectClient, webhook_url: str | None, timeout: timedelta = HEARTBEAT_TIMEOUT) -> list[str]:
    """Create the automations, replacing those of the same name; returns one line for each."""
    automations = [mark_abandoned(timeout), reschedule_abandoned()]
    if webhook_url:
        block = Webhook(method="POST", url=SecretStr(webhook_url))
        automations.append(notify_failures(str(cast(object, block.save(WEBHOOK_BLOCK, overwrite=True)))))
    for automation in automations:
        for existing in client.read_automations_by_name(automation.name):
            client.delete_automation(existing.id)
        client.create_automation(automation)
    lines = [f"automation {automation.name}" for automation in automations]
    return lines if webhook_url else [*lines, f"no notification of failures: {WEBHOOK_VARIABLE} is not set"]
