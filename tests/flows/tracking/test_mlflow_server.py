"""Unusable MLflow servers are reported in one line before any work starts."""

import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dpo_core.config.recipe import TrackSettings
from dpo_core.errors import TrackingError
from flows.reports import run_table
from flows.tracking import mlflow_server
from tests.conftest import ROOT


@contextmanager
def telling(version: str) -> Iterator[str]:
    """A server that answers as MLflow's does at the two addresses that are asked first."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write({"/health": b"OK", "/version": version.encode()}[self.path])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()


@pytest.mark.parametrize("version", ["2.22.1", "3.9.0", "3.16.4"])
def test_an_older_server_is_refused_with_what_to_do(version: str) -> None:
    with telling(version) as uri, pytest.raises(TrackingError, match=f"is version {version}.*mlflow db upgrade"):
        mlflow_server.check_server(uri)


@pytest.mark.parametrize("version", ["3.17.0", "3.18.0rc1", "4.0.0", "<html>"])
def test_a_newer_one_or_one_that_does_not_tell_is_taken(version: str) -> None:
    with telling(version) as uri:
        mlflow_server.check_server(uri)


def test_the_oldest_is_that_of_the_package() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [minimum] = [re.findall(r"mlflow>=(\d+)\.(\d+)", line) for line in needed if line.startswith("mlflow")]
    assert tuple(map(int, minimum[0])) == mlflow_server.MIN_VERSION


def test_a_database_of_an_older_mlflow_says_how_to_upgrade_it(track: TrackSettings) -> None:
    file = mlflow_server.database_path(mlflow_server.tracking_uri(track))
    with closing(sqlite3.connect(Path(str(file)))) as database, database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")  # MLflow 1.0's
    with pytest.raises(TrackingError, match=r"out-of-date database schema.*mlflow db upgrade"):
        run_table.open_experiment(track)


@pytest.mark.parametrize(
    ("uri", "environment", "header"),
    [
        ("http://me:p%40ss@there", {}, "Basic bWU6cEBzcw=="),
        ("http://there", {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p@ss"}, "Basic bWU6cEBzcw=="),
        ("http://there", {"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        ("http://there", {}, None),
    ],
)
def test_the_login_is_that_of_mlflows_client(
    uri: str, environment: dict[str, str], header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mlflow_server.auth_header(uri).get("Authorization") == header
