"""What a team relies on, against Postgres, both servers with their logins, and real workers."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from mlflow import MlflowClient

from dpo_core.train import journal
from tests.conftest import ROOT, pair_rows, shared

pytestmark = pytest.mark.slow

PATIENCE_S = 600  # on a computer with other things to do
SOONER = """
from datetime import timedelta
from deployments import automations, link
with link.connected() as client:
    automations.ensure(client, None, timedelta(seconds=45))
"""


@dataclass(frozen=True)
class Team:
    """Servers, the workers' directory, and a client's environment."""

    servers: Any
    place: Path
    words: dict[str, object]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT)} | self.servers.environment

    def cli(self, *words: str) -> str:
        """A command of ours or Prefect's, as a user types it."""
        told = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

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

    def deploy(self, *options: str) -> None:
        """Register the deployments with the words as their recipe."""
        self.cli("deployments", "deploy", *(f"{name}={value}" for name, value in self.words.items()), *options)

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
    return run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


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


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    pytest.importorskip("psycopg2", reason="needs the extra `servers`: pip install -e '.[servers]'")
    pytest.importorskip("flask_wtf", reason="needs the extra `servers`: pip install -e '.[servers]'")
    from deployments import postgres, servers

    if postgres.binaries() is None:
        pytest.skip("needs Postgres: apt install postgresql")
    # Not below pytest's own directory: a root's is closed to the user that Postgres then runs as.
    with tempfile.TemporaryDirectory(prefix="dpo-servers-") as directory:
        place = Path(directory)
        place.chmod(0o711)
        pairs = place / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))
        words = {
            "dataset": pairs,
            "model_name": shared("models", "stories260K"),
            "renderer_name": "role_colon",
            "lora_rank": 4,
            "batch_size": 4,
            "max_steps": 2,
            "max_length": 128,
            "max_new_tokens": 4,
            "num_samples": 0,
            "eval_every": 0,
            "tasks": "none",
            "registered_model_name": "stories",
        }
        with servers.running(place / "servers", servers.Ports(0, 0), dpo_home=place) as running:
            team = Team(running, place, words)
            team.deploy()
            yield team


@pytest.fixture(scope="module")
def workers(team: Team) -> Iterator[list[Any]]:
    started = [team.servers.worker(name) for name in ("first", "second")]
    try:
        for worker in started:
            worker.start()
        yield started
    finally:
        for worker in started:
            worker.stop()


def test_a_scheduled_run_fires_and_a_worker_runs_it(team: Team, workers: list[Any]) -> None:
    team.deploy("--cron", "* * * * *", "--timezone", "Asia/Kathmandu")

    def done() -> list[dict[str, Any]]:
        return [run for run in team.runs(tags={"all_": ["nightly"]}) if over(run)]

    run = until(done)[0]
    deployment = run["deployment_id"]
    team.ask(f"/deployments/{deployment}/pause_deployment", {})
    assert (run["state"]["type"], run["auto_scheduled"], run["tags"].count("dpo")) == ("COMPLETED", True, 1), run[
        "state"
    ]
    until(lambda: all(over(one) for one in team.runs() if one["state"]["type"] != "SCHEDULED"))


def test_two_workers_share_runs_and_never_run_the_same_one(team: Team, workers: list[Any]) -> None:
    [deployment] = [one for one in team.ask("/deployments/filter", {}) if one["name"] == "on-demand"]
    began = [worker.log.stat().st_size for worker in workers]
    made = [team.ask(f"/deployments/{deployment['id']}/create_flow_run", {})["id"] for _ in range(4)]
    done = [team.finished(identity) for identity in made]
    assert {run["run_count"] for run in done} == {1}
    logs = [worker.log.read_text()[start:] for worker, start in zip(workers, began, strict=True)]
    # Both may try to take a run; the server lets one of them.
    taken = [[run["name"] for run in done if f"'{run['name']}' submitted to infrastructure" in log] for log in logs]
    assert sorted(taken[0] + taken[1]) == sorted(run["name"] for run in done)
    assert taken[0]
    assert taken[1]


def test_both_servers_restart_in_mid_run_and_nothing_is_lost(team: Team, workers: list[Any]) -> None:
    log_path = team.place / "restarted"
    identity = team.submit(log_path=log_path, max_steps=150, num_epochs=60, dpo_beta=0.2)
    until(lambda: len(journal.read(log_path / "metrics.jsonl")) > 5)
    assert not over(team.runs(id={"any_": [identity]})[0])
    team.servers.mlflow.restart()
    team.servers.prefect.restart()
    assert team.finished(identity)["run_count"] == 1
    steps = [row.step for row in journal.read_steps(log_path / "metrics.jsonl")]
    assert steps == list(range(151))
    assert team.points(log_path) == steps[1:]


def test_a_killed_workers_run_goes_on_in_another_from_its_checkpoint(team: Team, workers: list[Any]) -> None:
    subprocess.run([sys.executable, "-c", SOONER], env=team.environment, check=True, timeout=60)
    log_path = team.place / "killed"
    identity = team.submit(log_path=log_path, max_steps=100, num_epochs=40, dpo_beta=0.3, save_every=5)
    until(lambda: len(journal.read(log_path / "checkpoints.jsonl")) > 1)
    [name] = [run["name"] for run in team.runs(id={"any_": [identity]})]
    [doomed] = [worker for worker in workers if f"'{name}' submitted to infrastructure" in worker.log.read_text()]
    [heir] = [worker for worker in workers if worker is not doomed]
    doomed.kill()
    before = journal.read(log_path / "metrics.jsonl")
    assert len(before) < 101
    assert team.finished(identity)["run_count"] == 2
    assert f"'{name}' submitted to infrastructure" in heir.log.read_text()
    after = journal.read(log_path / "metrics.jsonl")
    assert [row["step"] for row in after] == list(range(101))
    assert after[:6] == before[:6]  # not begun anew: times and all
    assert team.points(log_path) == list(range(1, 101))
