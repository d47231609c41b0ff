"""What training left goes to MLflow while the base is evaluated: nobody waits for it, and it can be looked at early."""

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

RECORDED = "dpo.recorded"
LEAVING_S = 60.0


@dataclass(frozen=True, slots=True)
class Training:
    """A training run that has ended, and its data."""

    checkpoint: Checkpoint
    pairs: PairSet
    rendered: RenderedSet


def record(handle: RunHandle, recipe: Recipe, training: Training) -> None:
    """The whole journal, the data, files, curves and the model, unless the run has those of this checkpoint already.

    Raises TrackingError when MLflow does not answer.
    """
    checkpoint = training.checkpoint
    mlflow_run.project(handle, checkpoint.log_path)
    with mlflow_run.answering(handle.uri):
        held = handle.client.get_run(handle.run_id).data.tags.get(RECORDED)
    if held == checkpoint.fingerprint:
        return
    run_report.log_data(handle, training.pairs, training.rendered)
    run_report.log_files(handle, recipe, checkpoint.log_path)
    with mlflow_run.answering(handle.uri):
        versions.log_model(handle, checkpoint, versions.registered_name(recipe))
    mlflow_run.tag(handle, {RECORDED: checkpoint.fingerprint})


@contextmanager
def recording(opened: Callable[[], RunHandle], recipe: Recipe, training: Training) -> Iterator[None]:
    """Record in a thread while the block runs, and until it is done. When MLflow fails, registering makes up for it."""

    def attempt() -> None:
        with suppress(TrackingError):
            record(opened(), recipe, training)

    thread = threading.Thread(target=attempt, name="mlflow-recording", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        thread.join(LEAVING_S)
        raise
    thread.join()
