"""A stage's process that ends without a word: was it memory?"""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_core.cache.store import Store
from dpo_core.errors import DiedError, OutOfMemoryError, RecipeError, StoppedError, TrainingError
from dpo_core.process import launch
from dpo_core.records import Record
from dpo_core.stages import STAGES
from dpo_core.stages.stage import StageCall
from dpo_core.system import host_memory
from dpo_core.train.batching import budget_attempt, budget_note
from dpo_core.train.batching.budget_note import MIN_TOKENS


def call(stage: str, token_budget: object) -> Any:
    request: Any = SimpleNamespace(train=SimpleNamespace(token_budget=token_budget))
    return StageCall(STAGES[stage], {}, request)


class PlainRequest(Record):
    """A run's directory, of which launch asks nothing else."""

    log_path: Path


def plain_call(log_path: Path) -> StageCall[Any]:
    return StageCall(STAGES["train"], {}, PlainRequest(log_path=log_path))


@pytest.mark.parametrize("stage", ["train", "warm_start"])
def test_an_explicit_budget_that_ran_out_is_not_to_be_tried_again(stage: str) -> None:
    told = launch.killed_for_memory_error(call(stage, 4096), None)
    assert isinstance(told, OutOfMemoryError)
    assert "memory ran out with token_budget=4096" in told.found
    assert "token_budget=2048 or auto" in told.remedy


def test_an_automatic_one_is_worth_another_try_with_less() -> None:
    told = launch.killed_for_memory_error(call("train", "auto"), 2048)
    assert isinstance(told, DiedError)
    assert "half in the next try: this one had 2,048 tokens" in told.rule
    told = launch.killed_for_memory_error(call("train", "auto"), MIN_TOKENS)
    assert isinstance(told, OutOfMemoryError)
    assert f"token_budget={MIN_TOKENS}, the least that auto takes" in told.found


@pytest.mark.parametrize(("stage", "budget"), [("train", "auto"), ("score_reference", 4096), ("evaluate", 4096)])
def test_where_no_budget_was_tried_none_is_blamed(stage: str, budget: object) -> None:
    told = launch.killed_for_memory_error(call(stage, budget), None)
    assert isinstance(told, DiedError)
    assert "beside what other processes hold" in told.rule
    assert "token_budget" not in str(told)


@pytest.mark.parametrize(
    ("kills", "before", "code", "by_memory"),
    [
        (1, 0, -signal.SIGKILL, True),
        (1, 1, -signal.SIGKILL, False),
        (1, 0, -signal.SIGABRT, False),
        (None, None, -signal.SIGKILL, None),
    ],
)
def test_the_kernels_count_tells_which_ends_are_memorys(
    monkeypatch: pytest.MonkeyPatch, kills: int | None, before: int | None, code: int, by_memory: bool | None
) -> None:
    monkeypatch.setattr(host_memory, "oom_kills", lambda: kills)
    assert launch.ended_for_memory(code, before) is by_memory


@pytest.mark.parametrize(("counts", "failed"), [((3, 3, 4, 4), 2048), ((3, 3, 3), None), ((None, None, None), 2048)])
def test_a_child_that_was_killed_leaves_a_note_of_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: tuple[int | None, ...],
    failed: int | None,
) -> None:
    """By the kernel for memory, by somebody, and where nobody tells: then the first step had not fitted."""
    asked, store = plain_call(tmp_path), Store(tmp_path / "store")
    told = iter(counts)

    def wait(*_: object) -> int:
        budget_note.write(tmp_path / budget_note.NOTE, 2048)
        return -signal.SIGKILL

    monkeypatch.setattr(host_memory, "oom_kills", lambda: next(told))
    monkeypatch.setattr(launch, "wait", wait)
    with pytest.raises(DiedError):
        launch.launch(asked, store)
    monkeypatch.setattr(host_memory, "oom_kills", lambda: None if counts[0] is None else 99)  # others, later
    assert budget_attempt.failed_budget(tmp_path / budget_note.NOTE) == failed


def test_a_stop_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> int:
        budget_note.write(tmp_path / budget_note.NOTE, 2048)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "wait", wait)
    with pytest.raises(StoppedError):
        launch.launch(plain_call(tmp_path), Store(tmp_path / "store"))
    assert not (tmp_path / budget_note.NOTE).exists()


def test_an_interpreter_that_does_not_start_is_the_recipes_only_where_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="See eval_python"):
        launch.wait([str(tmp_path / "python")], {})
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TrainingError, match=r"in the interpreter of this one\. Make memory free"):
        launch.wait([str(tmp_path / "python")], {})
