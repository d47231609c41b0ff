"""``dpo ui``: the MLflow UI on the runs' store, in the light form of the server."""

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
from dpo_core.config.redact import shown
from dpo_core.errors import TrackingError
from flows.tracking import experiment_page, mlflow_server

HOST = "127.0.0.1"
START_UP_S = 120
STOPPING_S = 10

# One worker and no job runners: half a gigabyte in place of three.
LIGHT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(track: TrackSettings, port: int) -> None:
    """Show the address of the experiment's page, serving it until Ctrl-C unless the store has its own server.

    Raises TrackingError when the port is taken, the server does not come up, or the store's own does not answer.
    """
    uri = mlflow_server.tracking_uri(track)
    if mlflow_server.is_server(uri):
        mlflow_server.check_server(uri)
        print(f"MLflow is at {page(uri, track.experiment_name)}")
        return
    # A supervisor's SIGTERM ends it as Ctrl-C does; the server would outlive this process otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running(uri, port) as (ours, address):
        print(f"MLflow is at {page(address, track.experiment_name)}\nCtrl-C ends it.", flush=True)
        try:
            ours.process.wait()
        except KeyboardInterrupt:
            return
        raise died(ours)


@dataclass(frozen=True, slots=True)
class Server:
    """A server's process, and what it says."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]


@contextmanager
def running(uri: str, port: int) -> Iterator[tuple[Server, str]]:
    """A server of this store, answering inside the block and gone with it."""
    mlflow_server.check_port(HOST, port)
    if file := mlflow_server.database_path(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as log:
        ours = Server(start(uri, port, log), log)
        try:
            address = f"http://{HOST}:{port}"
            wait(ours, address)
            yield ours, address
        finally:
            stop(ours.process)


def start(uri: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """The server's process, leading a group of its own: Ctrl-C reaches it through us alone."""
    options = ["--workers", "1", "--host", HOST, "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    root = mlflow_server.artifact_root(uri, "")
    artifacts = ["--default-artifact-root", root] if root else []
    command = [sys.executable, "-m", "mlflow", "server", *options, *artifacts]
    # Not as an argument, which every user of the computer can read: a database's address may hold a password.
    environment = {**os.environ, **LIGHT, "MLFLOW_BACKEND_STORE_URI": uri}
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait(ours: Server, address: str) -> None:
    """Until the server answers.

    Raises TrackingError when it ends, or does not answer in time.
    """
    deadline = time.monotonic() + START_UP_S
    while time.monotonic() < deadline and ours.process.poll() is None:
        try:
            mlflow_server.check_server(address)
        except TrackingError:
            time.sleep(0.3)
        else:
            return
    raise died(ours)


def died(ours: Server) -> TrackingError:
    """The error for a server that is not there, with the last thing it said."""
    ours.log.seek(0)
    said = [line for line in ours.log.read().decode(errors="replace").splitlines() if line.strip()]
    status = ours.process.poll()
    found = "does not answer" if status is None else f"ended with exit code {status}"
    return TrackingError(f"The MLflow server {found}.", "", f"It said: {said[-1].strip() if said else 'nothing'}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: politely, then not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(STOPPING_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def page(address: str, experiment: str) -> str:
    """The page of the experiment, or the start page while there is none."""
    try:
        query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
        with urlopen(query, timeout=mlflow_server.TIMEOUT_S) as answer:
            known = json.load(answer)["experiment"]
    except HTTPError:
        return shown(address)
    viewed = any(tag["key"] == experiment_page.VIEW_TAG for tag in known.get("tags", []))
    return mlflow_server.experiment_page(
        shown(address), known["experiment_id"], experiment_page.VIEW_KEY if viewed else None
    )
