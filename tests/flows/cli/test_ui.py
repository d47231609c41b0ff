"""MLflow UI (``dpo ui``): serves the right store, fails with one line, and leaves no process running."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from dpo_core.config.recipe import TrackSettings
from dpo_core.errors import TrackingError
from flows.cli import ui
from flows.tracking.mlflow_run import RunHandle
from tests.flows.fake import served

SERVE = """
import sys
from dpo_core.config.recipe import TrackSettings
from flows.cli.ui import serve
serve(TrackSettings(tracking_uri=sys.argv[1], experiment_name="tests"), int(sys.argv[2]))
"""


def test_taken_port_is_refused_before_anything_starts(track: TrackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "start_server", lambda *_: pytest.fail("started"))
    with socket.socket() as holder:
        holder.bind((ui.HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(TrackingError, match=f"Port {port} of 127.0.0.1 cannot be used") as caught:
            ui.serve(track, port)
    assert "\n" not in str(caught.value)


def test_server_that_does_not_answer_is_an_error(free_port: int) -> None:
    with pytest.raises(TrackingError, match="does not answer"):
        ui.serve(TrackSettings(tracking_uri=f"http://127.0.0.1:{free_port}"), free_port)


def test_server_that_ends_is_an_error_with_its_last_output(
    track: TrackSettings, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: str, __: int, log: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
        return subprocess.Popen(command, stderr=log, start_new_session=True)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(ui, "start_server", start)
    with pytest.raises(TrackingError, match=r"ended with exit code 1\. Its last output was: the disk is full"):
        ui.serve(track, free_port)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_store_until_it_is_stopped(run: RunHandle, free_port: int, signal_number: signal.Signals) -> None:
    command = [sys.executable, "-c", SERVE, run.uri, str(free_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = f"http://127.0.0.1:{free_port}"
    assert f"{address}/#/experiments/{run.experiment_id}/runs?workflowType=machine_learning" in line
    assert line.strip().endswith("&viewStateShareKey=dpo")
    with urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run.run_id}", timeout=20) as response:
        assert json.load(response)["run"]["info"]["run_name"] == "a-run"
    process.send_signal(signal_number)
    assert process.wait(30) == 0
    process.stdout.close()
    with pytest.raises(TrackingError):
        ui.mlflow_server.check_server(address)
    assert not processes_on(free_port)


def processes_on(port: int) -> list[str]:
    """Command lines of the processes that still run with this port."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            lines += [command] if f"--port {port}" in command else []
    return lines


@pytest.mark.slow
def test_store_that_is_a_server_is_not_served_again(
    track: TrackSettings, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(track, free_port) as remote:
        ui.serve(remote, free_port)
    assert capsys.readouterr().out == f"MLflow is at http://127.0.0.1:{free_port}\n"
