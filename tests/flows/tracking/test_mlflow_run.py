"""MLflow run: it is found again, and every step is in it exactly once."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from dpo_core.config.recipe import Recipe, TrackSettings
from dpo_core.config.redact import hide_password
from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult
from flows.reports.curve_plot import PANELS
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.journal_follower import Follower
from tests.flows.fake import row, served, steps_of, wait_for, write_journal


def test_uri_is_the_setting_then_the_environment_then_sqlite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_server.tracking_uri(TrackSettings()) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000/")
    assert mlflow_server.tracking_uri(TrackSettings()) == "http://there:5000"
    assert mlflow_server.tracking_uri(TrackSettings(tracking_uri="sqlite:///a.db")) == f"sqlite:///{tmp_path}/a.db"


def test_a_plain_directory_is_refused() -> None:
    with pytest.raises(TrackingError, match=r"tracking_uri=\./mlruns is not a store"):
        mlflow_server.tracking_uri(TrackSettings(tracking_uri="./mlruns"))


def test_a_password_is_never_shown() -> None:
    assert hide_password("http://me:secret@there:5000/x") == "http://there:5000/x"
    assert hide_password("sqlite:////there/mlflow.db") == "sqlite:////there/mlflow.db"
    recipe = Recipe(track=TrackSettings(tracking_uri="http://me:secret@there"))
    assert mlflow_run.parameters(recipe)["tracking_uri"] == "http://there"


def test_a_server_that_refuses_is_told_at_once(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=f"127.0.0.1:{free_port} does not answer") as caught:
        mlflow_server.check_server(f"http://127.0.0.1:{free_port}")
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


def test_a_server_that_is_silent_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server, "TIMEOUT_S", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(TrackingError, match="does not answer"):
            mlflow_server.check_server(f"http://127.0.0.1:{deaf.getsockname()[1]}")


def test_the_same_training_run_is_the_same_run(recipe: Recipe, run: mlflow_run.RunHandle) -> None:
    again = mlflow_run.open_run(recipe.track, recipe, "another-name", "f00d")
    other = mlflow_run.open_run(recipe.track, recipe, "a-run", "beef")
    assert again == run
    assert other.run_id != run.run_id


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_an_unfinished_run_is_reopened(recipe: Recipe, run: mlflow_run.RunHandle, status: str) -> None:
    mlflow_run.close_run(run, status)
    mlflow_run.open_run(recipe.track, recipe, "a-run", "f00d")
    assert run.client.get_run(run.run_id).info.status == "RUNNING"


def test_a_finished_run_stays_finished(recipe: Recipe, run: mlflow_run.RunHandle) -> None:
    mlflow_run.close_run(run, "FINISHED")
    mlflow_run.open_run(recipe.track, recipe, "a-run", "f00d")
    mlflow_run.close_run(run, "FAILED")
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_params_are_flat_leaves_and_written_once(recipe: Recipe, run: mlflow_run.RunHandle) -> None:
    shown_otherwise = recipe.model_copy(update={"train": recipe.train.model_copy(update={"show_every": 3})})
    mlflow_run.open_run(recipe.track, shown_otherwise, "a-run", "f00d")
    params = run.client.get_run(run.run_id).data.params
    assert (params["learning_rate"], params["dpo_beta"], params["max_steps"]) == ("3e-05", "0.1", "None")
    assert (params["tasks"], params["show_every"]) == ("ifeval", "10")


def test_artifacts_lie_beside_the_database(recipe: Recipe, run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    assert run.client.get_run(run.run_id).info.artifact_uri.startswith(str(tmp_path / "mlruns" / "artifacts" / "tests"))


def test_the_experiment_opens_on_metrics_that_exist(run: mlflow_run.RunHandle) -> None:
    tags = run.client.get_experiment(run.experiment_id).tags
    charts = json.loads(tags["mlflow.sharedViewState.dpo"])["compareRunCharts"]
    drawn = {curve.metric for panel in PANELS for curve in panel.curves}
    lines = {chart["metricKey"] for chart in charts if chart["type"] == "LINE"}
    bars = {chart["metricKey"] for chart in charts if chart["type"] == "BAR"}
    assert lines < drawn
    assert {bar.partition("/")[0] for bar in bars} == {mlflow_run.BEFORE, mlflow_run.AFTER}


def test_a_deleted_experiment_is_told(recipe: Recipe, run: mlflow_run.RunHandle) -> None:
    run.client.delete_experiment(run.experiment_id)
    with pytest.raises(TrackingError, match="'tests' was deleted"):
        mlflow_run.open_run(recipe.track, recipe, "a-run", "f00d")


def test_every_step_once_with_the_journals_time(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    write_journal(tmp_path, 12)
    assert mlflow_run.log_journal(run, tmp_path) == 12
    assert mlflow_run.log_journal(run, tmp_path) == 12
    history = run.client.get_metric_history(run.run_id, "dpo_loss")
    assert [(point.step, point.timestamp) for point in history] == [(k, (1790000000 + k) * 1000) for k in range(1, 13)]
    assert [point.value for point in history] == [row(k)["dpo_loss"] for k in range(1, 13)]
    assert steps_of(run, "test/nll") == [0, 10]


def test_a_projection_cut_in_the_middle_goes_on(
    run: mlflow_run.RunHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(tmp_path, 40)
    monkeypatch.setattr(mlflow_run, "MAX_BATCH_METRICS", 30)
    send, sent = run.client.log_batch, []

    def failing(*args: object, **kwargs: object) -> None:
        if len(sent) == 3:
            raise ConnectionError("cut off")
        sent.append(send(*args, **kwargs))  # type: ignore[arg-type]

    monkeypatch.setattr(run.client, "log_batch", failing)
    with pytest.raises(TrackingError, match="cut off"):
        mlflow_run.log_journal(run, tmp_path)
    assert 0 < mlflow_run.last_logged_step(run) < 40
    monkeypatch.undo()
    mlflow_run.log_journal(run, tmp_path)
    assert steps_of(run, "dpo_loss") == list(range(1, 41))
    assert steps_of(run, "test/nll") == [0, 10, 20, 30, 40]


def test_the_answer_of_a_batch_may_get_lost(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    """The server took it, we do not know: the same points sent again are the same points."""
    write_journal(tmp_path, 12)
    steps = mlflow_run.journal.read_steps(tmp_path / "metrics.jsonl")
    mlflow_run.log_steps(run, steps, -1)
    mlflow_run.log_steps(run, steps, -1)
    assert steps_of(run, "dpo_loss") == list(range(1, 13))


def test_steps_repeated_after_a_resume_are_not_doubled(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    write_journal(tmp_path, 15)
    mlflow_run.log_journal(run, tmp_path)
    write_journal(tmp_path, 10, time=1.8e9)
    assert mlflow_run.log_journal(run, tmp_path) == 15
    write_journal(tmp_path, 18, time=1.8e9)
    mlflow_run.log_journal(run, tmp_path)
    assert steps_of(run, "dpo_loss") == list(range(1, 19))
    assert steps_of(run, "test/nll") == [0, 10]


def test_a_torn_last_line_waits(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    write_journal(tmp_path, 5)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "time": 1.79e9, "dpo_l')
    assert mlflow_run.log_journal(run, tmp_path) == 5


def test_a_loss_that_is_not_a_number_is_projected_once(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 5, "dpo_loss": NaN, "grad_norm": Infinity}\n')
    mlflow_run.log_journal(run, tmp_path)
    mlflow_run.log_journal(run, tmp_path)
    assert steps_of(run, "dpo_loss") == [1]


def test_batches_keep_to_the_limit_and_never_cut_a_step(tmp_path: Path) -> None:
    write_journal(tmp_path, 999)
    steps = mlflow_run.journal.read_steps(tmp_path / "metrics.jsonl")
    batches = mlflow_run.step_batches(steps)
    assert [step for batch in batches for step in batch] == steps
    assert max(sum(len(step.values) for step in batch) for batch in batches) <= 1000
    assert len(batches) < 8


def test_final_numbers_are_single_values(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    write_journal(tmp_path, 10)
    result = EvalResult(
        path=tmp_path,
        fingerprint="e",
        model_name="m",
        model_fingerprint="m",
        prompts_fingerprint="p",
        pairs_fingerprint="q",
        tasks={"ifeval": "1"},
        settings={},
        failed=0,
        metrics={"prompt_strict_acc": 0.9},
    )
    mlflow_run.log_result(run, "after", result)
    mlflow_run.log_result(run, "after", result)
    assert steps_of(run, "after/prompt_strict_acc") == [0]
    mlflow_run.log_journal(run, tmp_path)
    assert steps_of(run, "test/nll") == [0, 10]
    mlflow_run.log_result(run, "after", result.model_copy(update={"metrics": {"prompt_strict_acc": 0.8}}))
    assert run.client.get_run(run.run_id).data.metrics["after/prompt_strict_acc"] == 0.8


def test_the_follower_projects_what_is_written_meanwhile(run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    with Follower(lambda: run, tmp_path, pause=0.01):
        write_journal(tmp_path, 5)
        wait_for(lambda: steps_of(run, "dpo_loss") == [1, 2, 3, 4, 5])
        write_journal(tmp_path, 8)
    assert steps_of(run, "dpo_loss") == list(range(1, 9))


def test_the_follower_never_raises_and_warns_once(
    run: mlflow_run.RunHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def unavailable(*_: object, **__: object) -> None:
        tries.append(1)
        raise RuntimeError("gone")

    monkeypatch.setattr(run.client, "log_batch", unavailable)
    with Follower(lambda: run, tmp_path, pause=0.01):
        for last in range(1, 5):
            write_journal(tmp_path, last)
            wait_for(lambda last=last: len(tries) >= last)  # type: ignore[misc]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Training goes on" in caplog.text


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(recipe: Recipe, tmp_path: Path, free_port: int) -> None:
    """All steps are there once, whatever the server had taken when it went."""
    with served(recipe.track, free_port) as track:
        handle = mlflow_run.open_run(track, recipe, "a-run", "f00d")
        write_journal(tmp_path, 5)
        follower = Follower(lambda: handle, tmp_path, pause=0.1)
        follower.thread.start()
        wait_for(lambda: steps_of(handle, "dpo_loss") == [1, 2, 3, 4, 5])
    write_journal(tmp_path, 25)
    wait_for(lambda: follower.offline)
    with served(recipe.track, free_port):
        wait_for(lambda: not follower.offline)
        write_journal(tmp_path, 30)
        follower.__exit__(None, None, None)
        assert steps_of(handle, "dpo_loss") == list(range(1, 31))
        assert steps_of(handle, "test/nll") == [0, 10, 20, 30]
        assert handle.url is not None
        assert handle.url.startswith(f"http://127.0.0.1:{free_port}/#/experiments/")


def test_telemetry_is_off() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
