"""Runs that are given from worker to worker, and an end to it."""

import pytest

from deployments import automations
from dpo_core.errors import TrainingError
from flows.pipeline import MAX_STARTS, check_starts


def test_a_run_that_is_over_is_not_crashed_by_force() -> None:
    [action] = automations.abandoned().actions
    assert (action.type, getattr(action, "force", None)) == ("change-flow-run-state", False)


def test_what_one_automation_does_the_next_waits_for() -> None:
    [abandons] = automations.abandoned().actions
    assert automations.continued().trigger.model_dump()["expect"] == {f"prefect.flow-run.{abandons.name}"}


def test_a_run_that_takes_every_worker_with_it_ends() -> None:
    check_starts(MAX_STARTS)
    with pytest.raises(TrainingError, match=f"started {MAX_STARTS + 1} times"):
        check_starts(MAX_STARTS + 1)
