"""Client of a team's servers: commands, requests and runs, for the tests."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT

ABANDONED = "Abandoned"  # as in deployments.automations
PATIENCE_S = 600  # long enough for a busy computer


@dataclass(frozen=True)
class Team:
    """Servers, the workers' directory, and a client's environment."""

    servers: Any
    directory: Path
    settings: dict[str, object]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT)} | self.servers.environment

    def cli(self, *words: str, **environment: str) -> str:
        """Output of a command that must succeed."""
        process = self.run_command(*words, **environment)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    def refused(self, *words: str, **environment: str) -> str:
        """Output of a command that must fail without a traceback."""
        process = self.run_command(*words, **environment)
        assert process.returncode, process.stdout
        output = process.stdout + process.stderr
        assert "Traceback" not in output
        return output

    def run_command(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run ``dpo …`` or ``python -m …`` as a user types it."""
        dpo = str(Path(sys.executable).with_name("dpo"))
        return subprocess.run(
            [dpo, *words[1:]] if words[0] == "dpo" else [sys.executable, "-m", *words],
            cwd=self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def request(self, path: str, body: dict[str, Any]) -> Any:
        login = base64.b64encode(self.environment["PREFECT_API_AUTH_STRING"].encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        with urlopen(
            Request(self.servers.prefect_api + path, json.dumps(body).encode(), headers), timeout=30
        ) as response:
            return json.loads(response.read() or "null")

    def runs(self, **criteria: Any) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.request("/flow_runs/filter", {"flow_runs": criteria} if criteria else {})
        return runs

    def deploy(self, *options: str, **environment: str) -> None:
        """Register the deployments with ``settings`` as their recipe."""
        words = [f"{name}={value}" for name, value in self.settings.items()]
        self.cli("deployments", "deploy", *words, *options, **environment)

    def submit(self, **settings: object) -> str:
        """Submit a run of the on-demand deployment; returns its id."""
        output = self.cli("deployments", "submit", *(f"{name}={value}" for name, value in settings.items()))
        return output.split("(")[1].split(")")[0]

    def finished(self, identity: str) -> dict[str, Any]:
        """Wait until the run has ended; it must have completed."""
        [run] = until(lambda: [run for run in self.runs(id={"any_": [identity]}) if over(run)])
        assert run["state"]["type"] == "COMPLETED", run["state"]
        return run

    def points(self, log_path: Path) -> list[int]:
        """The steps in MLflow of the finished run that trained in a directory."""
        environment = self.environment
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setenv(name, environment[name])
            client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            [run] = [
                run for run in client.search_runs(experiments) if (run.info.run_name or "").endswith(log_path.name)
            ]
            assert run.info.status == "FINISHED"
            return [point.step for point in client.get_metric_history(run.info.run_id, "dpo_loss")]


def over(run: dict[str, Any]) -> bool:
    """Whether a run has ended; an abandoned run waits for another worker."""
    ended = run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return ended and run["state"]["name"] != ABANDONED


def until(found: Callable[[], Any], patience: float = PATIENCE_S) -> Any:
    """The first true value of ``found``, called again until then; a server that does not answer counts as false."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if value := found():
                return value
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"nothing was found in {patience} seconds")
