"""What training left, recorded while something else goes on: once, and never in its way."""

from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from dpo_core.config.recipe import Recipe
from dpo_core.errors import TrackingError
from flows import log_artifacts
from flows.log_artifacts import TrainingOutput
from flows.registry.versions import Candidate
from flows.tracking.mlflow_run import RunHandle


@pytest.fixture
def training(candidate: Candidate) -> TrainingOutput:
    return TrainingOutput(candidate.checkpoint, candidate.pairs, candidate.rendered)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose files were logged, each time."""
    told: list[str] = []
    true = log_artifacts.run_report.log_files

    def noted(handle: RunHandle, *rest: object) -> None:
        told.append(handle.run_id)
        true(handle, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(log_artifacts.run_report, "log_files", noted)
    return told


def names(run: RunHandle) -> set[str]:
    return {file.path for file in run.client.list_artifacts(run.run_id)}


def opening(run: RunHandle) -> Callable[[], RunHandle]:
    """A thread of its own has a client of its own."""
    return lambda: RunHandle(run.uri, run.experiment_id, run.run_id, MlflowClient(run.uri))


def test_it_is_there_after_the_block_and_not_recorded_again(
    run: RunHandle, recipe: Recipe, training: TrainingOutput, drawn: list[str]
) -> None:
    with log_artifacts.log_in_background(opening(run), recipe, training):
        pass
    assert {"curves.png", "recipe.toml", "journal"} <= names(run)
    assert len(run.client.get_run(run.run_id).inputs.dataset_inputs) == 2
    [model] = run.client.search_logged_models([run.experiment_id])
    assert (model.name, model.status) == ("dpo-test", LoggedModelStatus.READY)
    log_artifacts.log_training(run, recipe, training)
    assert drawn == [run.run_id]


def test_another_checkpoint_of_the_run_is_recorded_anew(
    run: RunHandle, recipe: Recipe, training: TrainingOutput, drawn: list[str]
) -> None:
    log_artifacts.log_training(run, recipe, training)
    extended = training.checkpoint.model_copy(update={"fingerprint": "extended"})
    log_artifacts.log_training(run, recipe, TrainingOutput(extended, training.pairs, training.rendered))
    assert drawn == [run.run_id] * 2


def test_a_store_that_is_away_is_not_told_to_the_block(
    run: RunHandle, recipe: Recipe, training: TrainingOutput
) -> None:
    def away() -> RunHandle:
        raise TrackingError("found", "rule", "remedy")

    with log_artifacts.log_in_background(away, recipe, training):
        pass
    assert names(run) == set()
    log_artifacts.log_training(run, recipe, training)
    assert "curves.png" in names(run)
