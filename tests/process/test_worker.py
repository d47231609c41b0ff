"""A stage's process: it does not outlive the command that wants its result."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_core.cache.store import Store
from dpo_core.errors import OutOfMemoryError
from dpo_core.process import launch, worker
from dpo_core.records import DataReport
from dpo_core.stages.evaluation.prompts import PromptsRequest


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB.\nmore"), "CUDA out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "DefaultCPU"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_runs_out_anywhere_is_told_in_three_parts(error: Exception, found: str) -> None:
    told = worker.out_of_memory_error("evaluate", error)
    assert isinstance(told, OutOfMemoryError)
    assert f"ran out in stage evaluate: {found}" in told.found.replace("[enforce fail at alloc_cpu.cpp] ", "")
    assert told.rule
    assert "set a smaller eval_batch_size" in told.remedy
    assert "more" not in told.found


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("out of memory of a word"), RuntimeError("shapes"), OSError(2, "No such file")):
        assert worker.out_of_memory_error("train", error) is None


def test_a_stage_without_memory_ends_with_that_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process itself: what it leaves is what the command raises."""

    def run(*_: object) -> None:
        raise MemoryError

    request = tmp_path / "request.json"
    request.write_text(PromptsRequest(source="demo", seed=0, limit=None, demo_pairs=64).model_dump_json())
    monkeypatch.setattr(worker, "import_stage", lambda _: SimpleNamespace(run=run))
    monkeypatch.setattr(worker, "stop_with_parent", lambda _: None)
    monkeypatch.setattr(worker.gc_tuning, "skip_at_exit", lambda: None)
    assert worker.main("prompts", request, tmp_path / "store", "key", os.getpid()) == 4
    told = launch.error_of(tmp_path / worker.ERROR_FILE)
    assert isinstance(told, OutOfMemoryError)
    assert "in stage prompts: MemoryError" in told.found


@pytest.fixture
def dead() -> int:
    """The pid of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_stage_leaves_when_its_command_died_before_it_could_ask_who_that_was(tmp_path: Path, dead: int) -> None:
    """It would wait for ever otherwise: another holds what it is to write."""
    store = Store(tmp_path / "store")
    request = tmp_path / "request.json"
    request.write_text(PromptsRequest(source="demo", seed=0, limit=None, demo_pairs=64).model_dump_json())
    words = launch.command("prompts", request, store, "key")
    assert words[-1] == str(os.getpid())
    with store.write("prompts", "key") as draft:
        done = subprocess.run([*words[:-1], str(dead)], timeout=60, check=False)
        draft.publish(DataReport(rows_read=0, kept=0, dropped={}))
    assert done.returncode == -signal.SIGTERM
