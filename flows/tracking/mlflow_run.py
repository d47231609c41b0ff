"""MLflow run of a training run; its journal is the source of truth and can be replayed at any time.

A run is found again by its fingerprint, and every step is logged exactly once however often the journal is replayed.
Nothing here uses MLflow's thread-local active run.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException

from dpo_core.config.recipe import Recipe, TrackSettings
from dpo_core.config.redact import hide_password, redacted
from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult, StepMetrics
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import METRICS
from flows.tracking import experiment_page, mlflow_server
from flows.tracking.system_metrics import SYSTEM, SystemMetrics

FINGERPRINT = "dpo.fingerprint"
MAX_BATCH_METRICS = 1000  # in one log_batch
BEFORE, AFTER = "before", "after"  # training: prefixes of a run's final metrics, as in after/prompt_strict_acc


@dataclass(frozen=True, slots=True)
class RunHandle:
    """Identifiers of an MLflow run, and a client of the store at ``uri``."""

    uri: str
    experiment_id: str
    run_id: str
    client: MlflowClient = field(repr=False, compare=False)

    @property
    def url(self) -> str | None:
        """The address of the run's page, None when the store is no server."""
        return (
            mlflow_server.run_page(hide_password(self.uri), self.experiment_id, self.run_id)
            if mlflow_server.is_server(self.uri)
            else None
        )


@contextmanager
def as_tracking_error(uri: str) -> Iterator[None]:
    """Turn errors of MLflow and the network inside the block into a TrackingError of one line."""
    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise TrackingError(
            f"MLflow at {hide_password(uri)} failed: {error_line(error)}.",
            "",
            "Everything finished so far is kept: run the same command again to continue.",
        ) from error


def error_line(error: BaseException) -> str:
    """Return one line about an error: the operating system's message if the chain began with one, else its own."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    source = root if isinstance(root, OSError) and root.strerror else error
    return (str(source).strip() or type(source).__name__).splitlines()[0].rstrip(".")


def connect(uri: str) -> MlflowClient:
    """Return a client of the store; a missing sqlite database is created.

    Raises TrackingError when a server does not answer or a database cannot be opened.
    """
    mlflow_server.check_server(uri)
    # The default of 7 retries blocks for minutes when a server becomes unavailable during a run.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # The flow prints the run's page at the end; MLflow would print it with the password that its address may carry.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # It logs every retry; the failure after the last retry is reported anyway.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with as_tracking_error(uri):
        if file := mlflow_server.database_path(uri):
            file.parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(uri)


def find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment with this name; create it if it is new.

    Raises TrackingError when it was deleted: MLflow reserves the name of a deleted experiment.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Another process may create it at this moment; then it is found below.
        with suppress(MlflowException):
            client.create_experiment(name, artifact_location=mlflow_server.artifact_root(uri, name))
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        raise deleted_experiment_error(name)
    if experiment.tags.get(experiment_page.VIEW_TAG) != experiment_page.shared_view():
        client.set_experiment_tag(experiment.experiment_id, experiment_page.VIEW_TAG, experiment_page.shared_view())
    return str(experiment.experiment_id)


def deleted_experiment_error(name: str) -> TrackingError:
    """Return the error for a deleted experiment."""
    return TrackingError(
        f"The MLflow experiment {name!r} was deleted.",
        "Its name stays reserved until it is restored or purged.",
        "Restore it (mlflow experiments restore), or choose another experiment_name.",
    )


def open_run(track: TrackSettings, recipe: Recipe, name: str, fingerprint: str) -> RunHandle:
    """Find the run of a training run by its fingerprint, or create it; an unfinished run is set to RUNNING.

    Its parameters are the recipe's settings, each written once. Raises TrackingError when MLflow does not answer.
    """
    uri = mlflow_server.tracking_uri(track)
    client = connect(uri)
    with as_tracking_error(uri):
        experiment_id = find_or_create_experiment(client, uri, track.experiment_name)
        run = find_run(client, experiment_id, fingerprint)
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags=initial_tags(fingerprint))
        elif run.info.status != "FINISHED":
            client.update_run(run.info.run_id, status="RUNNING")
        handle = RunHandle(uri, experiment_id, run.info.run_id, client)
        logged = run.data.params
        new = [Param(leaf, value) for leaf, value in parameters(recipe).items() if leaf not in logged]
        client.log_batch(handle.run_id, params=new)
    return handle


def run_name(recipe: Recipe, log_path: Path) -> str:
    """Return a run's name in MLflow. The UI truncates names, so what distinguishes runs comes first.

    The member of a sweep is named like its directory, after the settings that vary.
    """
    if "=" in log_path.name:
        return log_path.name.replace("learning_rate=", "lr").replace("dpo_beta=", "beta")
    return f"lr{recipe.train.learning_rate:g} beta{recipe.train.dpo_beta:g} {log_path.name}"


def initial_tags(fingerprint: str) -> dict[str, str]:
    """Return the tags that a run is created with; the UI shows user and source in its table."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
    return {
        FINGERPRINT: fingerprint,
        "mlflow.user": user,
        "mlflow.source.name": "dpo run",
        "mlflow.source.type": "LOCAL",
    }


def find_run(client: MlflowClient, experiment_id: str, fingerprint: str) -> Any:
    """Return the newest run with this fingerprint, or None."""
    runs = client.search_runs([experiment_id], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
    return runs[0] if runs else None


def parameters(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's settings as flat names and strings, without the password that an address may carry."""
    leaves = {leaf: value for section in redacted(recipe).values() for leaf, value in section.items()}
    return {leaf: ",".join(value) if isinstance(value, list) else str(value) for leaf, value in leaves.items()}


def last_logged_step(handle: RunHandle) -> int:
    """Return the last training step that the run contains, -1 for none."""
    latest = handle.client.get_run(handle.run_id).data.to_proto().metrics
    excluded = (BEFORE, AFTER, SYSTEM)  # their steps are not the journal's
    return max((int(metric.step) for metric in latest if metric.key.split("/")[0] not in excluded), default=-1)


def log_journal(handle: RunHandle, log_path: Path) -> int:
    """Log the journal's steps that the run lacks; return the last step that it now contains.

    Idempotent: a step is logged completely or not at all, with the journal's time. A step that the run contains is left
    alone, even if the journal was rewritten since: resuming repeats the steps after a checkpoint with the same values.
    Raises TrackingError when MLflow does not answer; steps logged by then stay.
    """
    with as_tracking_error(handle.uri):
        last_step = last_logged_step(handle)
        new_steps = [step for step in journal.read_steps(log_path / METRICS) if step.step > last_step]
        return log_steps(handle, new_steps, last_step)


def log_steps(handle: RunHandle, steps: list[StepMetrics], last_step: int) -> int:
    """Log steps in as few batches as MLflow allows, never splitting a step; return the run's last step."""
    for batch in step_batches(steps):
        handle.client.log_batch(handle.run_id, metrics=[point for step in batch for point in step_metrics(step)])
        last_step = batch[-1].step
    return last_step


def step_batches(steps: list[StepMetrics]) -> list[list[StepMetrics]]:
    """Group steps into batches of at most ``MAX_BATCH_METRICS`` metrics."""
    size = MAX_BATCH_METRICS // max((len(step.values) for step in steps), default=1)
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def step_metrics(step: StepMetrics) -> list[Metric]:
    """Return a step's metrics as MLflow's, time in milliseconds since the epoch."""
    return [Metric(name, value, round(step.time * 1000), step.step) for name, value in step.values.items()]


def log_system_metrics(handle: RunHandle, metrics: SystemMetrics) -> None:
    """Log the pending samples, and drop them once they are logged."""
    with as_tracking_error(handle.uri):
        if metrics.pending:
            batch = metrics.to_metrics(handle.client.get_run(handle.run_id).info.start_time)
            for start in range(0, len(batch), MAX_BATCH_METRICS):
                handle.client.log_batch(handle.run_id, metrics=batch[start : start + MAX_BATCH_METRICS])
            metrics.pending = []


def log_result(handle: RunHandle, when: str, result: EvalResult) -> None:
    """Log an evaluation's metrics under ``BEFORE`` or ``AFTER``; unchanged values are not logged again."""
    with as_tracking_error(handle.uri):
        run = handle.client.get_run(handle.run_id)
        metrics = {f"{when}/{name}": value for name, value in result.metrics.items()}
        new = {name: value for name, value in metrics.items() if run.data.metrics.get(name) != value}
        time = max([run.info.start_time, *(metric.timestamp for metric in run.data.to_proto().metrics)]) + 1
        handle.client.log_batch(handle.run_id, metrics=[Metric(name, value, time, 0) for name, value in new.items()])


def set_tags(handle: RunHandle, tags: Mapping[str, str]) -> None:
    """Set tags of the run."""
    with as_tracking_error(handle.uri):
        handle.client.log_batch(handle.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def close_run(handle: RunHandle, status: str) -> None:
    """End the run as FINISHED, FAILED or KILLED; a finished one stays finished."""
    with as_tracking_error(handle.uri):
        if handle.client.get_run(handle.run_id).info.status != "FINISHED":
            handle.client.set_terminated(handle.run_id, status=status)
