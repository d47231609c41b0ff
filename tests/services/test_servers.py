"""What a team relies on, against Postgres, both servers with their logins, and real workers."""

import subprocess
import sys
from typing import Any

import pytest

from dpo_core.train.checkpoint import journal
from tests.services.team import Team, over, until

pytestmark = pytest.mark.slow

SOONER = """
from datetime import timedelta
from deployments import automations, prefect_client as link
with link.connected() as client:
    automations.ensure(client, None, timedelta(seconds=45))
"""


def test_a_scheduled_run_fires_and_a_worker_runs_it(team: Team, workers: list[Any]) -> None:
    team.deploy("--cron", "* * * * *", "--timezone", "Asia/Kathmandu")

    def done() -> list[dict[str, Any]]:
        return [run for run in team.runs(tags={"all_": ["nightly"]}) if over(run) and run["auto_scheduled"]]

    run = until(done)[0]
    deployment = run["deployment_id"]
    team.ask(f"/deployments/{deployment}/pause_deployment", {})
    assert (run["state"]["type"], run["tags"].count("dpo")) == ("COMPLETED", 1), run["state"]
    until(lambda: all(over(one) for one in team.runs() if one["state"]["type"] != "SCHEDULED"))


def test_two_workers_share_runs_and_never_run_the_same_one(team: Team, workers: list[Any]) -> None:
    [deployment] = [one for one in team.ask("/deployments/filter", {}) if one["name"] == "on-demand"]
    began = [worker.log.stat().st_size for worker in workers]
    made = [team.ask(f"/deployments/{deployment['id']}/create_flow_run", {})["id"] for _ in range(4)]
    done = [team.finished(identity) for identity in made]
    assert {run["run_count"] for run in done} == {1}
    names = sorted(run["name"] for run in done)

    def taken() -> list[list[str]]:
        """Whose runs each worker took. Both may try to take one; the server lets one of them."""
        logs = [worker.log.read_bytes()[start:].decode() for worker, start in zip(workers, began, strict=True)]
        return [[name for name in names if f"'{name}' submitted to infrastructure" in log] for log in logs]

    # A worker may say so when the run is already over.
    shared = until(lambda: told if len((told := taken())[0] + told[1]) >= len(names) else None, patience=60)
    assert sorted(shared[0] + shared[1]) == names
    assert all(shared)


def test_a_comparison_is_kept_by_both_servers(team: Team, workers: list[Any]) -> None:
    rates = {team.place / "one": "3e-05", team.place / "other": "4e-05"}
    for made in [team.submit(log_path=place, learning_rate=rate) for place, rate in rates.items()]:
        team.finished(made)
    said = team.cli("dpo", "compare", *map(str, rates))
    assert "learning_rate" in said
    [told] = team.ask("/artifacts/filter", {"artifacts": {"key": {"any_": ["comparison"]}}})
    assert told["type"] == "markdown"
    assert "| learning_rate | 3e-05 | 4e-05 |" in told["data"]
    assert len(list((team.place / "runs" / "comparisons").glob("*/comparison.html"))) == 1


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
