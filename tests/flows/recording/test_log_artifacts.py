"""Artifacts of training are logged in the background, once, and errors do not reach the block."""

from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from dpo_core.config.recipe import Recipe
from dpo_core.errors import TrackingError
from flows.recording import log_artifacts
from flows.recording.log_artifacts import TrainingOutput
from flows.registry.versions import Candidate
from flows.tracking.mlflow_run import RunHandle


@pytest.fixture
def training(candidate: Candidate) -> TrainingOutput:
    return TrainingOutput(candidate.checkpoint, candidate.pairs, candidate.rendered)


@pytest.fixture
def logged_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose files were logged, each time."""
    run_ids: list[str] = []
    log_files = log_artifacts.run_report.log_files

    def record_and_log(handle: RunHandle, *rest: object) -> None:
        run_ids.append(handle.run_id)
        log_files(handle, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(log_artifacts.run_report, "log_files", record_and_log)
    return run_ids


def artifact_names(run: RunHandle) -> set[str]:
    return {file.path for file in run.client.list_artifacts(run.run_id)}


def opener(run: RunHandle) -> Callable[[], RunHandle]:
    """A thread of its own has a client of its own."""
    return lambda: RunHandle(run.uri, run.experiment_id, run.run_id, MlflowClient(run.uri))


def test_artifacts_are_logged_after_the_block_and_not_logged_again(
    run: RunHandle, recipe: Recipe, training: TrainingOutput, logged_runs: list[str]
) -> None:
    with log_artifacts.log_in_background(opener(run), recipe, training):
        pass
    assert {"curves.png", "recipe.toml", "journal"} <= artifact_names(run)
    assert len(run.client.get_run(run.run_id).inputs.dataset_inputs) == 2
    [model] = run.client.search_logged_models([run.experiment_id])
    assert (model.name, model.status) == ("dpo-test", LoggedModelStatus.READY)
    log_artifacts.log_training(run, recipe, training)
    assert logged_runs == [run.run_id]


def test_another_checkpoint_of_the_run_is_logged(
    run: RunHandle, recipe: Recipe, training: TrainingOutput, logged_runs: list[str]
) -> None:
    log_artifacts.log_training(run, recipe, training)
    extended = training.checkpoint.model_copy(update={"fingerprint": "extended"})
    log_artifacts.log_training(run, recipe, TrainingOutput(extended, training.pairs, training.rendered))
    assert logged_runs == [run.run_id] * 2


def test_an_unavailable_store_raises_nothing_in_the_block(
    run: RunHandle, recipe: Recipe, training: TrainingOutput
) -> None:
    def unavailable() -> RunHandle:
        raise TrackingError("found", "rule", "remedy")

    with log_artifacts.log_in_background(unavailable, recipe, training):
        pass
    assert artifact_names(run) == set()
    log_artifacts.log_training(run, recipe, training)
    assert "curves.png" in artifact_names(run)
