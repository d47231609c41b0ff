"""Approval on a real Prefect server: given or declined on the command line, or not given in time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

SCRIPT = """
import sys
from prefect import flow, task
from dpo_core.config.recipe import PromoteSettings
from flows.registry import approval
from flows.registry.gates import GateReport

@task
def promote(minutes):
    ask = approval.approval_request(PromoteSettings(require_approval=True, approval_minutes=minutes))
    print(ask(GateReport(True, "version 2 is promoted over version 1: it does.", ())), flush=True)

@task
def after():
    print("went on", flush=True)

@flow
def asking(minutes: float):
    promote(minutes)
    after()

asking(float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server on a port of its own, as an environment that knows it."""
    home = tmp_path_factory.mktemp("prefect")
    api = "http://127.0.0.1:4267/api"
    own = os.environ | {"PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4267"]
    server = subprocess.Popen(
        command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not healthy(f"{api}/health"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield own | {"PREFECT_API_URL": api}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asking(environment: dict[str, str], path: Path, minutes: float) -> "subprocess.Popen[str]":
    """A flow that asks; what it says goes through a pipe."""
    script = path / "asking.py"
    script.write_text(SCRIPT)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(script), str(minutes)], env=environment, stdout=pipe, stderr=pipe, text=True
    )


def identity(flow: "subprocess.Popen[str]") -> str:
    """The flow run's id, from the line that says how to answer."""
    assert flow.stdout is not None
    for line in flow.stdout:
        if found := re.search(r"dpo approve (\S+)", line):
            return found[1]
    raise AssertionError("it asked nothing")


def approve(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "approve", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "told"), [((), "passed: Ada approved it"), (("--decline",), "failed: Ada declined")])
def test_an_answer_from_the_command_line(
    environment: dict[str, str], tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    flow = asking(environment, tmp_path, 5)
    try:
        run = identity(flow)
        time.sleep(3)  # it pauses after it said so
        listed = approve(environment)
        assert run in listed.stdout, listed.stderr
        answered = approve(environment, run, "--by", "Ada", "--note", "it is good", *words)
        assert answered.returncode == 0, answered.stderr
        out, err = flow.communicate(timeout=90)
    finally:
        flow.kill()
    assert (flow.returncode, told in out, "(it is good)" in out, "went on" in out) == (0, True, True, True), out + err
    late = approve(environment, run)
    assert late.returncode == 2
    assert "does not wait for approval (its state is Completed)" in late.stderr


@pytest.mark.slow
def test_no_answer_in_time_is_no(environment: dict[str, str], tmp_path: Path) -> None:
    flow = asking(environment, tmp_path, 0.05)
    out, err = flow.communicate(timeout=120)
    assert flow.returncode == 0, err
    assert "failed: nobody approved it within 0.05 minutes." in out
    assert "went on" in out


@pytest.mark.slow
def test_what_does_not_wait_cannot_be_answered(environment: dict[str, str]) -> None:
    assert "There is no flow run 'nonsense'" in approve(environment, "nonsense").stderr
    assert "No flow run waits" in approve(environment).stderr
