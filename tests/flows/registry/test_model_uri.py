"""Model URIs of registered models resolve to checkpoint directories."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.model.locate import check_directory
from flows.registry.model_uri import directory
from flows.registry.versions import CHAMPION, Candidate, VersionNotes, register
from flows.tracking import mlflow_run
from tests.flows import fake


def notes() -> VersionNotes:
    return VersionNotes({}, "")


@pytest.fixture
def world(
    run: mlflow_run.RunHandle, candidate: Candidate, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> mlflow_run.RunHandle:
    """The registry that the environment names, with two versions of dpo-test."""
    monkeypatch.chdir(tmp_path)
    return filled(run, candidate, stories, monkeypatch)


def filled(
    run: mlflow_run.RunHandle, candidate: Candidate, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> mlflow_run.RunHandle:
    """Version 1, the champion, and version 2, real weights both."""
    final = candidate.checkpoint.path
    shutil.copytree(stories, final, dirs_exist_ok=True)
    register(run, candidate, "dpo-test", notes)
    run.client.set_registered_model_alias("dpo-test", CHAMPION, "1")
    (final / "note.txt").write_text("the second")
    register(
        run,
        replace(candidate, checkpoint=candidate.checkpoint.model_copy(update={"fingerprint": "d"})),
        "dpo-test",
        notes,
    )
    # Last: registering makes a store MLflow's default for a moment, and then the one that it last knew as such.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.uri)
    return run


def test_versions_aliases_and_names(world: mlflow_run.RunHandle, tmp_path: Path) -> None:
    first, second = directory("models:/dpo-test/1"), directory("models:/dpo-test@candidate")
    assert first is not None
    assert second is not None
    assert [(path / "note.txt").is_file() for path in (first, second)] == [False, True]
    check_directory(first)
    assert first.is_relative_to(tmp_path / "mlruns")
    assert directory("models:/dpo-test@champion") == directory("dpo-test") == first
    world.client.delete_registered_model_alias("dpo-test", CHAMPION)
    assert directory("dpo-test") == second


def test_missing_files_are_an_error(world: mlflow_run.RunHandle, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    with pytest.raises(TrackingError, match="files of version 1 of dpo-test cannot be read"):
        directory("models:/dpo-test@champion")


@pytest.mark.slow
def test_a_servers_checkpoint_is_downloaded_once(
    recipe: Recipe,
    candidate: Candidate,
    stories: Path,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with fake.served(recipe.track.model_copy(update={"experiment_name": "served"}), free_port) as track:
        mlflow_run.connect(str(track.tracking_uri)).create_experiment("served", artifact_location="mlflow-artifacts:/s")
        filled(mlflow_run.open_run(track, recipe, "a-run", "f00d"), candidate, stories, monkeypatch)
        first = directory("dpo-test")
        assert first is not None
        assert first.is_relative_to(tmp_path / "runs")
        check_directory(first)
        for weights in tmp_path.rglob("model.safetensors"):
            if not weights.is_relative_to(tmp_path / "runs"):
                weights.unlink()
        assert directory("models:/dpo-test/1") == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/dpo-tset@champion", "no registered model 'dpo-tset'.*Did you mean dpo-test"),
        ("models:/dpo-test@best", "no version 'best'.*Versions are candidate, champion, 2, 1"),
        ("models:/dpo-test/9", "no version '9'"),
        ("other", "no registered model 'other'"),
    ],
)
def test_the_error_for_a_missing_model_names_what_exists(world: mlflow_run.RunHandle, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        directory(name)


def test_without_a_registry_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert directory("dpo-test") is None
    assert directory("other:thing") is None
    assert list(tmp_path.iterdir()) == []
