"""What the server does by itself: it tells of failures, and gives runs whose worker is gone to another one."""

from datetime import timedelta
from typing import cast

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

NOTIFY = "FAILURE_WEBHOOK_URL"
HEARTBEAT = "prefect.flow-run.heartbeat"
PATIENCE = timedelta(seconds=90)
BLOCK = "dpo-failures"
ABANDONED = "Abandoned"
OURS = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.dpo"})
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
# A run that says one of these is known to be alive, or over.
SIGNS = ("Completed", "Failed", "Cancelled", "Crashed", "Cancelling", "Paused", "Suspended", ABANDONED)
PAYLOAD = """{
  "text": "{{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }}",
  "run": "{{ flow_run | ui_url }}"
}"""


def abandoned(patience: timedelta = PATIENCE) -> AutomationCore:
    """A run whose heartbeat stops, as its worker is gone, is crashed, under a name of its own.

    A run that is over stays as it is, though its last event was lost while the server was away: the server's own rules
    refuse to crash it.
    """
    return AutomationCore(
        name="dpo: a run that is not heard of is abandoned",
        description="Its worker seems to be gone.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{name}" for name in SIGNS)},
            match=RUNS,
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=patience,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=ABANDONED,
                message=f"Not heard of for {patience.total_seconds():.0f} s: its worker seems to be gone.",
            )
        ],
    )


def continued() -> AutomationCore:
    """An abandoned run is scheduled again at once: another worker takes it, and it goes on from its checkpoint."""
    return AutomationCore(
        name="dpo: an abandoned run goes to another worker",
        description="It goes on from its last checkpoint.",
        trigger=happened(ABANDONED),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="For another worker to go on.")
        ],
    )


def happened(*states: str) -> EventTrigger:
    """Whenever a run of ours comes into one of these states."""
    return EventTrigger(
        expect={f"prefect.flow-run.{state}" for state in states},
        match=RUNS,
        match_related=OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def failures(webhook: str) -> AutomationCore:
    """A failed or crashed run is told to the webhook of this block."""
    return AutomationCore(
        name="dpo: a failed run is told",
        description="Posts the run's name, state, message and page.",
        trigger=happened("Failed", "Crashed", "TimedOut"),
        actions=[CallWebhook(block_document_id=webhook, payload=PAYLOAD)],
    )


def ensure(client: SyncPrefectClient, notify: str | None, patience: timedelta = PATIENCE) -> list[str]:
    """Make or renew the automations; returns a line on each."""
    made = [abandoned(patience), continued()]
    if notify:
        block = Webhook(method="POST", url=SecretStr(notify))
        made.append(failures(str(cast(object, block.save(BLOCK, overwrite=True)))))
    for automation in made:
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
        client.create_automation(automation)
    lines = [f"automation {automation.name}" for automation in made]
    return lines if notify else [*lines, f"no notice of failures: {NOTIFY} is not set"]
