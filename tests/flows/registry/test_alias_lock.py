"""The alias lock admits one holder: threads, processes, and a killed holder."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpo_core.errors import TrackingError
from flows.registry import alias_lock
from flows.registry.alias_lock import locked
from flows.tracking.mlflow_run import RunHandle

SCRIPT = """
import sys, time
import flows
from flows.registry.alias_lock import locked
from flows.tracking.mlflow_run import connect
client, log = connect(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with locked(client, "m"):
        log.write("in\\n")
        time.sleep(0.05)
        log.write("out\\n")
"""


@pytest.mark.slow
def test_two_processes_are_never_inside_together(run: RunHandle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", SCRIPT, run.uri, str(log)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for child in children:
        assert child.stdout and child.stdout.readline() == "ready\n"  # noqa: PT018
    for child in children:
        child.communicate("go\n", timeout=60)
    assert log.read_text() == "in\nout\n" * 6
    assert [child.returncode for child in children] == [0, 0]
    assert run.client.search_registered_models() == []


def test_a_stale_lock_is_broken_by_one_waiter_only(run: RunHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_lock, "LEASE_S", 0.5)
    run.client.create_registered_model("dpo-lock.m", description="killed")
    inside, most, guard = 0, 0, threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with locked(run.client, "m"):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert run.client.search_registered_models() == []


def test_a_holder_notices_that_its_lock_was_broken(run: RunHandle) -> None:
    with locked(run.client, "m") as lock:
        lock.check()
        run.client.rename_registered_model("dpo-lock.m", "dpo-lock.m.gone")
        run.client.create_registered_model("dpo-lock.m", description="another")
        with pytest.raises(TrackingError, match="No alias was moved"):
            lock.check()
    assert run.client.get_registered_model("dpo-lock.m").description == "another"


def test_a_lock_that_is_never_released_times_out(run: RunHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_lock, "MAX_WAIT_S", 0.3)
    with (
        locked(run.client, "m"),
        pytest.raises(TrackingError, match=r"has been holding dpo-lock\.m"),
        locked(run.client, "m"),
    ):
        pass


def test_an_error_inside_releases_it(run: RunHandle) -> None:
    with pytest.raises(ZeroDivisionError), locked(run.client, "m"):
        raise ZeroDivisionError
    with locked(run.client, "m") as lock:
        lock.check()
