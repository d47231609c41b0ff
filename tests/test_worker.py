"""A stage's process: it does not outlive the command that wants its result."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from dpo_core import launch
from dpo_core.records import DataReport
from dpo_core.requests import PromptsRequest
from dpo_core.store import Store


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
