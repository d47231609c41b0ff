"""Artifacts of training, logged to MLflow in the background while the base model is evaluated.

The flow does not wait for the upload, and the artifacts can be seen before the evaluation ends.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dpo_core.config.recipe import Recipe
from dpo_core.errors import TrackingError
from dpo_core.records import Checkpoint, PairSet, RenderedSet
from flows.registry import versions
from flows.reports import run_report
from flows.tracking import mlflow_run
from flows.tracking.mlflow_run import RunHandle

LOGGED_TAG = "dpo.recorded"
JOIN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TrainingOutput:
    """The final checkpoint of a training run and the data that it was trained on."""

    checkpoint: Checkpoint
    pairs: PairSet
    rendered: RenderedSet


def log_training(handle: RunHandle, recipe: Recipe, output: TrainingOutput) -> None:
    """Log the journal, data, files, curves and model, unless the run already has those of this checkpoint.

    Raises TrackingError when MLflow does not answer.
    """
    checkpoint = output.checkpoint
    mlflow_run.log_journal(handle, checkpoint.log_path)
    with mlflow_run.as_tracking_error(handle.uri):
        logged_fingerprint = handle.client.get_run(handle.run_id).data.tags.get(LOGGED_TAG)
    if logged_fingerprint == checkpoint.fingerprint:
        return
    run_report.log_data(handle, output.pairs, output.rendered)
    run_report.log_files(handle, recipe, checkpoint.log_path)
    with mlflow_run.as_tracking_error(handle.uri):
        versions.find_or_upload_model(handle, checkpoint, versions.registered_model_name(recipe))
    # Last: a process killed before this tag logs everything again.
    mlflow_run.set_tags(handle, {LOGGED_TAG: checkpoint.fingerprint})


@contextmanager
def log_in_background(open_run: Callable[[], RunHandle], recipe: Recipe, output: TrainingOutput) -> Iterator[None]:
    """Log in a thread while the block runs; leaving the block waits for the thread.

    When MLflow fails, the error is suppressed: registering the model logs whatever is missing.
    """

    def attempt() -> None:
        with suppress(TrackingError):
            log_training(open_run(), recipe, output)

    thread = threading.Thread(target=attempt, name="mlflow-recording", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        thread.join(JOIN_TIMEOUT_S)
        raise
    thread.join()
