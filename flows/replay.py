"""Project a run's directory into MLflow, whenever that is: after a server was away, or into another store."""

from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import CHECKPOINTS, CONFIG, FINAL, METRICS, read_config
from flows.reports import run_report
from flows.tracking import mlflow_run


def sync(log_path: Path, tracking_uri: str | None, experiment_name: str | None) -> str:
    """Bring the run in MLflow up to the journal, with its files; returns a line on what is there now.

    Raises RecipeError when there is no run, TrackingError when MLflow does not answer.
    """
    told = read_config(log_path)
    if told is None:
        raise RecipeError(f"{log_path} holds no run.", f"A run's directory has its {CONFIG}.", "Give a run's log_path.")
    recipe = Recipe.model_validate(told["recipe"])
    given = {"tracking_uri": tracking_uri, "experiment_name": experiment_name}
    track = recipe.track.model_copy(update={name: value for name, value in given.items() if value})
    handle = mlflow_run.open_run(track, recipe, mlflow_run.run_name(recipe, log_path), told["origin"])
    before = mlflow_run.last_step(handle)
    after = mlflow_run.project(handle, log_path)
    run_report.log_files(handle, recipe, log_path)
    finished = any(row["name"] == FINAL for row in journal.read(log_path / CHECKPOINTS))
    if finished:
        mlflow_run.close_run(handle, "FINISHED")
    lines = len(journal.read(log_path / METRICS))
    said = "nothing was missing" if after == before else f"steps {max(before + 1, 0)} to {after} were added"
    state = "finished" if finished else "not finished"
    return f"{log_path}: {lines} lines in the journal, {said}; the run is {state}. {handle.url or handle.run_id}"
