"""A stage's process that ends without a word: was it memory?"""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_core import host_memory, launch
from dpo_core.errors import DiedError, OutOfMemoryError


def request(token_budget: object) -> Any:
    return SimpleNamespace(train=SimpleNamespace(token_budget=token_budget))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has ended one process for memory since the stage began."""
    monkeypatch.setattr(host_memory, "oom_kills", lambda: 1)


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize("stage", launch.BUDGETED)
def test_an_explicit_budget_that_ran_out_is_not_to_be_tried_again(stage: str) -> None:
    told = launch.killed_for_memory(stage, -signal.SIGKILL, request(4096), 0)
    assert isinstance(told, OutOfMemoryError)
    assert "memory ran out with token_budget=4096" in told.found
    assert "token_budget=2048 or auto" in told.remedy


@pytest.mark.usefixtures("killed")
def test_an_automatic_one_is_worth_another_try() -> None:
    told = launch.killed_for_memory("train", -signal.SIGKILL, request("auto"), 0)
    assert isinstance(told, DiedError)
    assert "half in the next try" in told.rule
    told = launch.killed_for_memory("score_reference", -signal.SIGKILL, request(4096), 0)
    assert isinstance(told, DiedError)


def test_other_ends_are_not_memorys(monkeypatch: pytest.MonkeyPatch) -> None:
    for kills, before, code in ((1, 1, -signal.SIGKILL), (1, 0, -signal.SIGABRT), (None, None, -signal.SIGKILL)):
        monkeypatch.setattr(host_memory, "oom_kills", lambda kills=kills: kills)
        assert launch.killed_for_memory("train", code, request("auto"), before) is None
