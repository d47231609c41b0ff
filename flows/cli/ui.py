"""MLflow UI of the runs' store (``dpo ui``), served by one worker without job runners."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from dpo_core.config.recipe import TrackSettings
from dpo_core.config.redact import hide_password
from dpo_core.errors import TrackingError
from flows.tracking import experiment_page, mlflow_server

HOST = "127.0.0.1"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 10

# With one worker and no job runners the server takes half a gigabyte of memory, not three.
LIGHT_SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(track: TrackSettings, port: int) -> None:
    """Print the address of the experiment's page and serve it until Ctrl-C.

    A store that is a server already is not served again. Raises TrackingError when the port is taken, the server does
    not start, or the store's own server does not answer.
    """
    uri = mlflow_server.tracking_uri(track)
    if mlflow_server.is_server(uri):
        mlflow_server.check_server(uri)
        print(f"MLflow is at {experiment_url(uri, track.experiment_name)}")
        return
    # SIGTERM ends the server as Ctrl-C does; otherwise it would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running_server(uri, port) as (server, address):
        print(f"MLflow is at {experiment_url(address, track.experiment_name)}\nPress Ctrl-C to stop it.", flush=True)
        try:
            server.process.wait()
        except KeyboardInterrupt:
            return
        raise server_error(server)


@dataclass(frozen=True, slots=True)
class Server:
    """Process of an MLflow server, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]


@contextmanager
def running_server(uri: str, port: int) -> Iterator[tuple[Server, str]]:
    """Context of a running server: yields the server and its address, and stops the server at the end.

    Raises TrackingError when the port is taken or the server does not start.
    """
    mlflow_server.check_port(HOST, port)
    if file := mlflow_server.database_path(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as log:
        server = Server(start_server(uri, port, log), log)
        try:
            address = f"http://{HOST}:{port}"
            wait_until_ready(server, address)
            yield server, address
        finally:
            stop_server(server.process)


def start_server(uri: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the server's process in a group of its own, so that Ctrl-C does not reach it before this process."""
    options = ["--workers", "1", "--host", HOST, "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    root = mlflow_server.artifact_root(uri, "")
    artifacts = ["--default-artifact-root", root] if root else []
    command = [sys.executable, "-m", "mlflow", "server", *options, *artifacts]
    # In the environment: arguments are readable by every user of the computer, and the address may hold a password.
    environment = {**os.environ, **LIGHT_SERVER, "MLFLOW_BACKEND_STORE_URI": uri}
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_until_ready(server: Server, address: str) -> None:
    """Wait until the server answers.

    Raises TrackingError when it ends, or does not answer within START_TIMEOUT_S seconds.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            mlflow_server.check_server(address)
        except TrackingError:
            time.sleep(0.3)
        else:
            return
    raise server_error(server)


def server_error(server: Server) -> TrackingError:
    """The error for a server that ended or does not answer, with the last line of its output."""
    server.log.seek(0)
    lines = [line.strip() for line in server.log.read().decode(errors="replace").splitlines() if line.strip()]
    status = server.process.poll()
    problem = f"does not answer after {START_TIMEOUT_S} seconds" if status is None else f"ended with exit code {status}"
    return TrackingError(
        f"The MLflow server {problem}.", "", f"Its last output was: {lines[-1] if lines else 'nothing'}"
    )


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Stop the server and its workers: SIGTERM, and SIGKILL after STOP_TIMEOUT_S seconds."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(STOP_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def experiment_url(address: str, experiment: str) -> str:
    """Address of the experiment's page, or of the start page while the experiment does not exist."""
    try:
        query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
        with urlopen(query, timeout=mlflow_server.TIMEOUT_S) as response:
            details = json.load(response)["experiment"]
    except HTTPError:
        return hide_password(address)
    has_view = any(tag["key"] == experiment_page.VIEW_TAG for tag in details.get("tags", []))
    return mlflow_server.experiment_page(
        hide_password(address), details["experiment_id"], experiment_page.VIEW_KEY if has_view else None
    )
