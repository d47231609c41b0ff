"""What a team does wrong and what befalls it: refused with the reason, or survived."""

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

WRONG = "not-the-right-secret"


def asked_for(team: Team) -> int:
    """How many runs there are that no schedule made, which makes its own at any time."""
    return sum(not run["auto_scheduled"] for run in team.runs())


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"train": {"learning_rat": 1}}, "'learning_rat' was unexpected"),
        ({"train": {"learning_rate": -1}}, "-1 is less than or equal to the minimum of 0"),
        ({"train": {"lr_schedule": "square"}}, "'square' is not one of"),
    ],
)
def test_the_server_refuses_to_schedule_what_the_recipe_does(team: Team, recipe: dict[str, Any], told: str) -> None:
    before = asked_for(team)
    said = team.refused("prefect", "deployment", "run", "dpo/on-demand", "-p", f"recipe={json.dumps(recipe)}")
    assert told in " ".join(said.split())
    assert asked_for(team) == before


def test_submitting_refuses_what_two_settings_must_agree_on(team: Team) -> None:
    before = asked_for(team)
    assert "label_smoothing has no meaning" in team.refused("deployments", "submit", "loss=ipo", "label_smoothing=0.1")
    assert asked_for(team) == before


def test_names_that_are_not_there_are_told_with_those_that_are(team: Team) -> None:
    said = team.refused("deployments", "deploy", "--pool", "gpu")
    assert "There is no work pool 'gpu' on this server." in said
    assert "local" in said
    said = team.refused("deployments", "submit", "--deployment", "on-demnd")
    assert "Did you mean on-demand?" in said


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (("deployments", "submit"), {"PREFECT_API_AUTH_STRING": f"dpo:{WRONG}"}, "The Prefect server"),
        (("dpo", "runs"), {"MLFLOW_TRACKING_PASSWORD": WRONG}, "The MLflow server"),
        (("dpo", "models"), {"MLFLOW_TRACKING_USERNAME": WRONG}, "The MLflow server"),
    ],
)
def test_a_wrong_login_is_told_and_never_echoed(
    team: Team, words: tuple[str, ...], environment: dict[str, str], told: str
) -> None:
    said = team.refused(*words, **environment)
    assert told in said
    assert "rejects these credentials (HTTP 401)" in said
    assert WRONG not in said


def test_two_runs_at_once_share_one_gpu_by_turns(team: Team, workers: list[Any]) -> None:
    places = [team.place / name for name in ("turn-1", "turn-2")]
    made = [
        team.submit(log_path=place, max_steps=20, num_epochs=10, dpo_beta=0.4 + number / 10)
        for number, place in enumerate(places)
    ]
    runs = [team.finished(identity) for identity in made]
    starts, ends = zip(*((run["start_time"], run["end_time"]) for run in runs), strict=True)
    assert max(starts) < min(ends)  # both flows ran at the same time, in two workers
    spans = sorted(
        (rows[0]["time"], rows[-1]["time"]) for rows in (journal.read(place / "metrics.jsonl") for place in places)
    )
    assert spans[0][1] < spans[1][0]  # and never trained at the same time


def test_a_database_that_goes_away_costs_nothing(team: Team, workers: list[Any]) -> None:
    log_path = team.place / "no-database"
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


def test_new_data_that_are_announced_start_the_nightly_run(team: Team, workers: list[Any]) -> None:
    before = {run["id"] for run in team.runs(tags={"all_": ["nightly"]})}
    team.cli("prefect", "events", "emit", "dpo.new-data", "--resource-id", "dpo.dataset.pairs")

    def started() -> list[str]:
        found = [run for run in team.runs(tags={"all_": ["nightly"]}) if run["id"] not in before]
        return [run["id"] for run in found if not run["auto_scheduled"]]

    team.finished(until(started)[0])


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/failed", told
        finally:
            server.shutdown()


def test_a_failed_run_is_told_to_the_webhook(team: Team, workers: list[Any]) -> None:
    with listening() as (url, told):
        team.deploy(FAILURE_WEBHOOK_URL=url)
        identity = team.submit(model_name=team.place / "no-such-model")
        [run] = until(lambda: [run for run in team.runs(id={"any_": [identity]}) if over(run)])
        assert run["state"]["type"] == "FAILED"
        [notice] = until(lambda: list(told))
    assert notice["text"].startswith(f"{run['name']} is Failed: ")
    assert "no-such-model" in notice["text"]
    assert identity in notice["run"]
