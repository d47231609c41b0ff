"""A team's servers and workers, as the tests use them."""

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

ABANDONED = "Abandoned"  # as deployments.automations calls it
PATIENCE_S = 600  # on a computer with other things to do


@dataclass(frozen=True)
class Team:
    """Servers, the workers' directory, and a client's environment."""

    servers: Any
    place: Path
    words: dict[str, object]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT)} | self.servers.environment

    def cli(self, *words: str, **environment: str) -> str:
        """What a command of ours or Prefect's says, as a user types it."""
        told = self.typed(*words, **environment)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    def refused(self, *words: str, **environment: str) -> str:
        """What a command says that must fail, and not with a traceback."""
        told = self.typed(*words, **environment)
        assert told.returncode, told.stdout
        said = told.stdout + told.stderr
        assert "Traceback" not in said
        return said

    def typed(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """A command's end."""
        dpo = str(Path(sys.executable).with_name("dpo"))
        return subprocess.run(
            [dpo, *words[1:]] if words[0] == "dpo" else [sys.executable, "-m", *words],
            cwd=self.place,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        login = base64.b64encode(self.environment["PREFECT_API_AUTH_STRING"].encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        with urlopen(
            Request(self.servers.prefect_api + path, json.dumps(body).encode(), headers), timeout=30
        ) as answer:
            return json.loads(answer.read() or "null")

    def runs(self, **found: Any) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self.ask("/flow_runs/filter", {"flow_runs": found} if found else {})
        return told

    def deploy(self, *options: str, **environment: str) -> None:
        """Register the deployments with the words as their recipe."""
        settings = [f"{name}={value}" for name, value in self.words.items()]
        self.cli("deployments", "deploy", *settings, *options, **environment)

    def submit(self, **settings: object) -> str:
        """A run of the on-demand deployment; the identity that Prefect gave it."""
        told = self.cli("deployments", "submit", *(f"{name}={value}" for name, value in settings.items()))
        return told.split("(")[1].split(")")[0]

    def finished(self, identity: str) -> dict[str, Any]:
        """The run when it is over, well."""
        [run] = until(lambda: [run for run in self.runs(id={"any_": [identity]}) if over(run)])
        assert run["state"]["type"] == "COMPLETED", run["state"]
        return run

    def points(self, log_path: Path) -> list[int]:
        """The steps that MLflow holds of the one run that trained in a directory, which is finished."""
        environment = self.environment
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setenv(name, environment[name])
            client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
            experiments = [one.experiment_id for one in client.search_experiments()]
            [run] = [
                run for run in client.search_runs(experiments) if (run.info.run_name or "").endswith(log_path.name)
            ]
            assert run.info.status == "FINISHED"
            return [point.step for point in client.get_metric_history(run.info.run_id, "dpo_loss")]


def over(run: dict[str, Any]) -> bool:
    """Whether a run has ended; an abandoned one is between two workers."""
    ended = run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return ended and run["state"]["name"] != ABANDONED


def until(found: Callable[[], Any], patience: float = PATIENCE_S) -> Any:
    """What it finds as soon as it finds something; a server that is away for a moment has nothing."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if told := found():
                return told
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("nothing came of it in time")
