"""Mistakes of a team and failures of its servers: refused with the reason, or survived."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from dpo_core.train.checkpoint import journal
from tests.services.team import Team, over, until

pytestmark = pytest.mark.slow

WRONG_SECRET = "not-the-right-secret"


def count_submitted(team: Team) -> int:
    """Number of runs that were not created by a schedule, which may create one at any time."""
    return sum(not run["auto_scheduled"] for run in team.runs())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"train": {"learning_rat": 1}}, "'learning_rat' was unexpected"),
        ({"train": {"learning_rate": -1}}, "-1 is less than or equal to the minimum of 0"),
        ({"train": {"lr_schedule": "square"}}, "'square' is not one of"),
    ],
)
def test_the_server_refuses_an_invalid_recipe(team: Team, recipe: dict[str, Any], message: str) -> None:
    before = count_submitted(team)
    output = team.refused("prefect", "deployment", "run", "dpo/on-demand", "-p", f"recipe={json.dumps(recipe)}")
    assert message in " ".join(output.split())
    assert count_submitted(team) == before


def test_submitting_refuses_settings_that_contradict_each_other(team: Team) -> None:
    before = count_submitted(team)
    assert "label_smoothing has no meaning" in team.refused("deployments", "submit", "loss=ipo", "label_smoothing=0.1")
    assert count_submitted(team) == before


def test_an_unknown_pool_or_deployment_is_refused_with_a_suggestion(team: Team) -> None:
    output = team.refused("deployments", "deploy", "--pool", "gpu")
    assert "There is no work pool 'gpu' on this server." in output
    assert "local" in output
    output = team.refused("deployments", "submit", "--deployment", "on-demnd")
    assert "Did you mean on-demand?" in output


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("deployments", "submit"), {"PREFECT_API_AUTH_STRING": f"dpo:{WRONG_SECRET}"}, "The Prefect server"),
        (("dpo", "runs"), {"MLFLOW_TRACKING_PASSWORD": WRONG_SECRET}, "The MLflow server"),
        (("dpo", "models"), {"MLFLOW_TRACKING_USERNAME": WRONG_SECRET}, "The MLflow server"),
    ],
)
def test_a_wrong_login_is_refused_and_never_printed(
    team: Team, words: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    output = team.refused(*words, **environment)
    assert message in output
    assert "rejects these credentials (HTTP 401)" in output
    assert WRONG_SECRET not in output


def test_two_runs_never_train_at_the_same_time_on_one_gpu(team: Team, workers: list[Any]) -> None:
    directories = [team.directory / name for name in ("parallel-1", "parallel-2")]
    submitted = [
        team.submit(log_path=directory, max_steps=20, num_epochs=10, dpo_beta=0.4 + number / 10)
        for number, directory in enumerate(directories)
    ]
    runs = [team.finished(identity) for identity in submitted]
    starts, ends = zip(*((run["start_time"], run["end_time"]) for run in runs), strict=True)
    assert max(starts) < min(ends)  # both flows ran at the same time, in two workers
    spans = sorted(
        (rows[0]["time"], rows[-1]["time"])
        for rows in (journal.read(directory / "metrics.jsonl") for directory in directories)
    )
    assert spans[0][1] < spans[1][0]  # and never trained at the same time


def test_a_run_survives_a_restart_of_the_database(team: Team, workers: list[Any]) -> None:
    log_path = team.directory / "no-database"
    identity = team.submit(log_path=log_path, max_steps=120, num_epochs=60, dpo_beta=0.6)
    until(lambda: len(journal.read(log_path / "metrics.jsonl")) > 5)
    assert not over(team.runs(id={"any_": [identity]})[0])
    team.servers.postgres.stop()
    time.sleep(5)
    team.servers.postgres.start()
    assert team.finished(identity)["run_count"] == 1
    steps = [row.step for row in journal.read_steps(log_path / "metrics.jsonl")]
    assert steps == list(range(121))
    assert team.points(log_path) == steps[1:]


def test_the_event_for_new_data_starts_the_nightly_run(team: Team, workers: list[Any]) -> None:
    before = {run["id"] for run in team.runs(tags={"all_": ["nightly"]})}
    team.cli("prefect", "events", "emit", "dpo.new-data", "--resource-id", "dpo.dataset.pairs")

    def started() -> list[str]:
        found = [run for run in team.runs(tags={"all_": ["nightly"]}) if run["id"] not in before]
        return [run["id"] for run in found if not run["auto_scheduled"]]

    team.finished(until(started)[0])


@contextmanager
def webhook_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's URL, and the list of what was posted to it."""
    notices: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notices.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/failed", notices
        finally:
            server.shutdown()


def test_a_failed_run_is_posted_to_the_webhook(team: Team, workers: list[Any]) -> None:
    with webhook_server() as (url, notices):
        team.deploy(FAILURE_WEBHOOK_URL=url)
        identity = team.submit(model_name=team.directory / "no-such-model")
        [run] = until(lambda: [run for run in team.runs(id={"any_": [identity]}) if over(run)])
        assert run["state"]["type"] == "FAILED"
        [notice] = until(lambda: list(notices))
    assert notice["text"].startswith(f"{run['name']} is Failed: ")
    assert "no-such-model" in notice["text"]
    assert identity in notice["run"]
