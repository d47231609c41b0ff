"""Runs of a team on Postgres, both servers with their logins, and real workers."""

import subprocess
import sys
from typing import Any

import pytest

from dpo_core.train.checkpoint import journal
from tests.services.team import Team, over, until

pytestmark = pytest.mark.slow

SHORT_TIMEOUT = """
from datetime import timedelta
from deployments import automations, prefect_client
with prefect_client.connect() as client:
    automations.ensure(client, None, timedelta(seconds=45))
"""


def test_a_scheduled_run_fires_and_a_worker_runs_it(team: Team, workers: list[Any]) -> None:
    team.deploy("--cron", "* * * * *", "--timezone", "Asia/Kathmandu")

    def finished_scheduled() -> list[dict[str, Any]]:
        return [run for run in team.runs(tags={"all_": ["nightly"]}) if over(run) and run["auto_scheduled"]]

    run = until(finished_scheduled)[0]
    deployment = run["deployment_id"]
    team.request(f"/deployments/{deployment}/pause_deployment", {})
    assert (run["state"]["type"], run["tags"].count("dpo")) == ("COMPLETED", 1), run["state"]
    until(lambda: all(over(run) for run in team.runs() if run["state"]["type"] != "SCHEDULED"))


def test_two_workers_share_runs_and_never_run_the_same_one(team: Team, workers: list[Any]) -> None:
    [deployment] = [found for found in team.request("/deployments/filter", {}) if found["name"] == "on-demand"]
    offsets = [worker.log.stat().st_size for worker in workers]
    submitted = [team.request(f"/deployments/{deployment['id']}/create_flow_run", {})["id"] for _ in range(4)]
    runs = [team.finished(identity) for identity in submitted]
    assert {run["run_count"] for run in runs} == {1}
    names = sorted(run["name"] for run in runs)

    def taken() -> list[list[str]]:
        """Names of the runs that each worker started; the server lets only one worker start a run."""
        logs = [worker.log.read_bytes()[start:].decode() for worker, start in zip(workers, offsets, strict=True)]
        return [[name for name in names if f"'{name}' submitted to infrastructure" in log] for log in logs]

    # A worker may log it after the run has ended.
    shared = until(lambda: runs if len((runs := taken())[0] + runs[1]) >= len(names) else None, patience=60)
    assert sorted(shared[0] + shared[1]) == names
    assert all(shared)


def test_a_comparison_becomes_a_prefect_artifact_and_a_page(team: Team, workers: list[Any]) -> None:
    rates = {team.directory / "slow": "3e-05", team.directory / "fast": "4e-05"}
    for run in [team.submit(log_path=log_path, learning_rate=rate) for log_path, rate in rates.items()]:
        team.finished(run)
    output = team.cli("dpo", "compare", *map(str, rates))
    assert "learning_rate" in output
    [artifact] = team.request("/artifacts/filter", {"artifacts": {"key": {"any_": ["comparison"]}}})
    assert artifact["type"] == "markdown"
    assert "| learning_rate | 3e-05 | 4e-05 |" in artifact["data"]
    assert len(list((team.directory / "runs" / "comparisons").glob("*/comparison.html"))) == 1


def test_nothing_is_lost_when_both_servers_restart_during_a_run(team: Team, workers: list[Any]) -> None:
    log_path = team.directory / "restarted"
    identity = team.submit(log_path=log_path, max_steps=150, num_epochs=60, dpo_beta=0.2)
    until(lambda: len(journal.read(log_path / "metrics.jsonl")) > 5)
    assert not over(team.runs(id={"any_": [identity]})[0])
    team.servers.mlflow.restart()
    team.servers.prefect.restart()
    assert team.finished(identity)["run_count"] == 1
    steps = [row.step for row in journal.read_steps(log_path / "metrics.jsonl")]
    assert steps == list(range(151))
    assert team.points(log_path) == steps[1:]


def test_another_worker_continues_a_killed_workers_run_from_its_checkpoint(team: Team, workers: list[Any]) -> None:
    subprocess.run([sys.executable, "-c", SHORT_TIMEOUT], env=team.environment, check=True, timeout=60)
    log_path = team.directory / "killed"
    identity = team.submit(log_path=log_path, max_steps=100, num_epochs=40, dpo_beta=0.3, save_every=5)
    until(lambda: len(journal.read(log_path / "checkpoints.jsonl")) > 1)
    [name] = [run["name"] for run in team.runs(id={"any_": [identity]})]
    [killed] = [worker for worker in workers if f"'{name}' submitted to infrastructure" in worker.log.read_text()]
    [successor] = [worker for worker in workers if worker is not killed]
    killed.kill()
    before = journal.read(log_path / "metrics.jsonl")
    assert len(before) < 101
    assert team.finished(identity)["run_count"] == 2
    assert f"'{name}' submitted to infrastructure" in successor.log.read_text()
    after = journal.read(log_path / "metrics.jsonl")
    assert [row["step"] for row in after] == list(range(101))
    assert after[:6] == before[:6]  # continued, not started again: the times are the same
    assert team.points(log_path) == list(range(1, 101))
