"""Replay of a run's directory into MLflow: after a server was unavailable, or into another store."""

from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import CHECKPOINTS, CONFIG, FINAL, METRICS, read_config
from flows.reports import run_report
from flows.tracking import mlflow_run


def sync_run(log_path: Path, tracking_uri: str | None, experiment_name: str | None) -> str:
    """Log the journal and files that the MLflow run lacks, and return a line that says what was added.

    Raises RecipeError when the directory holds no run, TrackingError when MLflow does not answer.
    """
    config = read_config(log_path)
    if config is None:
        raise RecipeError(
            f"{log_path} holds no run.", f"A run's directory contains {CONFIG}.", "Give a run's log_path."
        )
    recipe = Recipe.model_validate(config["recipe"])
    overrides = {"tracking_uri": tracking_uri, "experiment_name": experiment_name}
    track = recipe.track.model_copy(update={name: value for name, value in overrides.items() if value})
    handle = mlflow_run.open_run(track, recipe, mlflow_run.run_name(recipe, log_path), config["origin"])
    step_before = mlflow_run.last_logged_step(handle)
    step_after = mlflow_run.log_journal(handle, log_path)
    run_report.log_files(handle, recipe, log_path)
    finished = any(row["name"] == FINAL for row in journal.read(log_path / CHECKPOINTS))
    if finished:
        mlflow_run.close_run(handle, "FINISHED")
    lines = len(journal.read(log_path / METRICS))
    added = f"steps {max(step_before + 1, 0)} to {step_after} were added"
    change = "nothing was missing" if step_after == step_before else added
    state = "finished" if finished else "not finished"
    return f"{log_path}: {lines} lines in the journal, {change}; the run is {state}. {handle.url or handle.run_id}"
