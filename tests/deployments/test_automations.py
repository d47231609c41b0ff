"""Automations that give an abandoned run to another worker, and the limit on its starts."""

import pytest

from deployments import automations
from dpo_core.errors import TrainingError
from flows.pipeline import MAX_STARTS, check_starts


def test_a_finished_run_is_not_crashed_by_force() -> None:
    [action] = automations.mark_abandoned().actions
    assert (action.type, getattr(action, "force", None)) == ("change-flow-run-state", False)


def test_the_second_automation_waits_for_the_state_that_the_first_one_sets() -> None:
    [change_state] = automations.mark_abandoned().actions
    assert automations.reschedule_abandoned().trigger.model_dump()["expect"] == {
        f"prefect.flow-run.{change_state.name}"
    }


def test_a_run_that_kills_its_workers_is_not_started_forever() -> None:
    check_starts(MAX_STARTS)
    with pytest.raises(TrainingError, match=f"started {MAX_STARTS + 1} times"):
        check_starts(MAX_STARTS + 1)
