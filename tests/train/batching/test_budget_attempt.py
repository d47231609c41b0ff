"""A budget that memory ended is not tried again."""

import json
import time
from pathlib import Path

import pytest
import torch

from dpo_core.errors import DiedError, OutOfMemoryError, StoppedError, TrainingError
from dpo_core.system import host_memory
from dpo_core.train.batching import budget_note
from dpo_core.train.batching.budget_attempt import BudgetAttempt, attempt_budget, failed_budget
from dpo_core.train.batching.budget_note import MIN_TOKENS
from dpo_core.train.runtime.memory_watch import explain_memory, explain_microbatch_memory


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kernel(monkeypatch, kills=3)
    return tmp_path / budget_note.NOTE


def kernel(monkeypatch: pytest.MonkeyPatch, kills: int | None, boot: str = "one") -> None:
    monkeypatch.setattr(host_memory, "oom_kills", lambda: kills)
    monkeypatch.setattr(host_memory, "boot_id", lambda: boot)


def test_a_process_that_the_kernel_ended_for_memory_had_too_large_a_budget(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BudgetAttempt(note, 2048).write(proven=True)
    assert failed_budget(note) is None  # killed by somebody, for something else
    kernel(monkeypatch, kills=4)
    assert failed_budget(note) == 2048


@pytest.mark.parametrize(("kills", "boot"), [(None, "one"), (0, "two")])
def test_without_the_kernels_word_a_first_step_that_did_not_end_counts(
    note: Path, monkeypatch: pytest.MonkeyPatch, kills: int | None, boot: str
) -> None:
    kernel(monkeypatch, kills, boot)
    BudgetAttempt(note, 2048).write()
    told = json.loads(note.read_text()) | {"boot": "one"}
    note.write_text(json.dumps(told))
    assert failed_budget(note) == 2048
    note.write_text(json.dumps(told | {"proven": True}))
    assert failed_budget(note) is None


def test_any_other_end_leaves_no_note(note: Path) -> None:
    for end in (StoppedError("stopped", "", ""), KeyboardInterrupt()):
        assert failed_budget(note) is None
        with pytest.raises(type(end)), attempt_budget(note, 2048):
            raise end
        assert not note.exists()
    with attempt_budget(note, 2048):
        pass
    assert not note.exists()
    assert failed_budget(note) is None


def test_memory_that_ran_out_is_tried_again_with_half(note: Path) -> None:
    with (
        pytest.raises(DiedError, match="takes half in the next try: 1,024 tokens") as raised,
        attempt_budget(note, 2048),
    ):
        raise in_microbatch(longest=300)
    assert "The longest pair has 300 tokens: set token_budget=1024" in raised.value.remedy
    assert failed_budget(note) == 2048


def in_microbatch(longest: int, budget: int = 2048) -> OutOfMemoryError:
    with pytest.raises(OutOfMemoryError) as raised, explain_microbatch_memory(budget, longest):
        raise torch.OutOfMemoryError("no more")
    return raised.value


@pytest.mark.parametrize(
    ("tokens", "longest", "remedy"), [(2048, 3000, "set max_length=1000"), (MIN_TOKENS, 100, "set token_budget=128")]
)
def test_what_half_would_not_help_is_told_at_once_with_what_does(
    note: Path, tokens: int, longest: int, remedy: str
) -> None:
    """A pair that alone is longer than the budget, and the least budget of all."""
    with pytest.raises(OutOfMemoryError, match=remedy), attempt_budget(note, tokens):
        raise in_microbatch(longest, tokens)
    assert not note.exists()


def test_memory_that_ran_out_beside_the_microbatches_is_no_budgets(note: Path) -> None:
    words = "the optimizer", "They must fit.", "Lower it."
    with (
        pytest.raises(OutOfMemoryError, match="ran out in the optimizer"),
        attempt_budget(note, 2048),
        explain_memory(*words),
    ):
        raise torch.OutOfMemoryError("no more")
    assert not note.exists()


def test_who_waited_for_the_process_knows_why_it_ended(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.time()
    BudgetAttempt(note, 2048).write(proven=True)
    assert budget_note.record_cause(note, True, time.time() + 1) is None  # another's
    assert budget_note.record_cause(note, True, begun) == 2048
    assert failed_budget(note) == 2048
    assert budget_note.record_cause(note, False, begun) is None  # the process's own word stands
    assert failed_budget(note) == 2048
    BudgetAttempt(note, 2048).write()
    assert budget_note.record_cause(note, False, begun) is None
    kernel(monkeypatch, kills=9)  # others, later
    assert failed_budget(note) is None


def test_an_explicit_budget_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError), attempt_budget(None, 2048):
        raise OutOfMemoryError("Memory ran out with token_budget=2048.", "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_least_budget_is_the_end_once(note: Path) -> None:
    BudgetAttempt(note, MIN_TOKENS).write(ran_out=True)
    with pytest.raises(TrainingError, match="the least that auto takes"):
        failed_budget(note)
    assert failed_budget(note) is None
