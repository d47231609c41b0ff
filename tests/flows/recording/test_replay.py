"""dpo sync: a run's directory is replayed into MLflow."""

from pathlib import Path

import pytest

from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import redacted
from dpo_core.errors import RecipeError
from dpo_core.train.checkpoint import journal, run_dir
from flows.recording.replay import sync_run
from flows.tracking import mlflow_run
from flows.tracking.journal_follower import Follower
from tests.flows.fake import served, wait_for
from tests.flows.tracking.test_mlflow_run import steps_of, write_journal


@pytest.fixture
def log_path(tmp_path: Path, recipe: Recipe) -> Path:
    """A run's directory that is not in MLflow yet."""
    path = tmp_path / "a-run"
    path.mkdir()
    config = {"fingerprint": "f00d", "lineage": "l", "origin": "f00d", "recipe": redacted(recipe)}
    run_dir.write_config(path, config)
    write_journal(path, 5)
    return path


def test_every_step_is_logged_once_however_often_it_is_synced(log_path: Path, run: mlflow_run.RunHandle) -> None:
    assert "steps 0 to 5 were added; the run is not finished" in sync_run(log_path, None, None)
    assert "nothing was missing" in sync_run(log_path, None, None)
    write_journal(log_path, 9)
    journal.append(log_path / "checkpoints.jsonl", {"name": "final", "step": 9, "path": "final"})
    assert "steps 6 to 9 were added; the run is finished" in sync_run(log_path, None, None)
    assert steps_of(run, "dpo_loss") == list(range(1, 10))
    mlflow_state = run.client.get_run(run.run_id)
    assert mlflow_state.info.status == "FINISHED"
    assert {file.path for file in run.client.list_artifacts(run.run_id)} >= {"curves.png", "recipe.toml", "journal"}


def test_another_store_gets_a_run_of_its_own(log_path: Path, run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    sync_run(log_path, other, "elsewhere")
    assert steps_of(run, "dpo_loss") == []
    client = mlflow_run.connect(other)
    [experiment] = client.search_experiments(filter_string="name = 'elsewhere'")
    assert client.search_runs([experiment.experiment_id])[0].data.params["learning_rate"] == "3e-05"


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no run"):
        sync_run(tmp_path, None, None)


@pytest.mark.slow
def test_a_server_that_starts_late_gets_every_step(log_path: Path, recipe: Recipe, free_port: int) -> None:
    track = recipe.track.model_copy(update={"tracking_uri": f"http://127.0.0.1:{free_port}"})
    follower = Follower(lambda: mlflow_run.open_run(track, recipe, "a-run", "f00d"), log_path, pause=0.1)
    with follower:
        wait_for(lambda: follower.offline)
        with served(recipe.track, free_port):
            wait_for(lambda: not follower.offline)
            assert follower.handle is not None
            assert steps_of(follower.handle, "dpo_loss") == [1, 2, 3, 4, 5]
            follower.stopping.set()
            follower.thread.join()
