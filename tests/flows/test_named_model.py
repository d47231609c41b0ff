"""Registered models by name, opened by whoever opens models."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.errors import RecipeError
from dpo_core.model.source import check_directory
from flows import tracking
from flows.named_model import directory
from flows.registry import CHAMPION, About, Candidate, register

ABOUT = About({}, "")


@pytest.fixture
def world(
    run: tracking.RunHandle, candidate: Candidate, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tracking.RunHandle:
    """Version 1, the champion, and version 2, real weights both, in the registry that the environment names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.uri)
    final = candidate.checkpoint.path
    shutil.copytree(stories, final, dirs_exist_ok=True)
    register(run, candidate, "dpo-test", ABOUT)
    run.client.set_registered_model_alias("dpo-test", CHAMPION, "1")
    (final / "note.txt").write_text("the second")
    register(
        run,
        replace(candidate, checkpoint=candidate.checkpoint.model_copy(update={"fingerprint": "d"})),
        "dpo-test",
        ABOUT,
    )
    return run


def test_versions_aliases_and_names(world: tracking.RunHandle) -> None:
    first, second = directory("models:/dpo-test/1"), directory("models:/dpo-test@candidate")
    assert first is not None
    assert second is not None
    assert [(path / "note.txt").is_file() for path in (first, second)] == [False, True]
    check_directory(first)
    assert directory("models:/dpo-test@champion") == directory("dpo-test") == first
    world.client.delete_registered_model_alias("dpo-test", CHAMPION)
    assert directory("dpo-test") == second


def test_what_is_brought_once_is_found_without_the_artifacts(world: tracking.RunHandle, tmp_path: Path) -> None:
    first = directory("models:/dpo-test/1")
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    assert directory("models:/dpo-test/1") == first


@pytest.mark.parametrize("name", ["models:/dpo-tset@champion", "models:/dpo-test@best", "models:/dpo-test/9", "other"])
def test_what_is_not_there_is_told_with_what_is(world: tracking.RunHandle, name: str) -> None:
    with pytest.raises(RecipeError, match="The registry has dpo-test"):
        directory(name)


def test_without_a_registry_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert directory("dpo-test") is None
    assert directory("other:thing") is None
    assert list(tmp_path.iterdir()) == []
