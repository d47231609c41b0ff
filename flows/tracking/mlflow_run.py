"""The projection of a training run into MLflow: the journal is the truth, and can be replayed at any time.

A run is found again by its fingerprint, every step is logged exactly once however often it is projected, and nothing
here uses MLflow's thread-local active run.
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
from dpo_core.config.redact import public, shown
from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult, StepMetrics
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import METRICS
from flows.tracking import experiment_page, mlflow_server
from flows.tracking.system_metrics import SYSTEM, SystemMetrics

FINGERPRINT = "dpo.fingerprint"
MOST_METRICS = 1000  # of one log_batch
BEFORE, AFTER = "before", "after"  # training: whose final numbers a run shows, as after/prompt_strict_acc


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run of MLflow, by its identifiers; ``client`` speaks to the store at ``uri``."""

    uri: str
    experiment_id: str
    run_id: str
    client: MlflowClient = field(repr=False, compare=False)

    @property
    def url(self) -> str | None:
        """The run's page, when the store is a server."""
        return (
            mlflow_server.run_page(shown(self.uri), self.experiment_id, self.run_id)
            if mlflow_server.is_server(self.uri)
            else None
        )


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """MLflow's and the network's errors inside become one TrackingError of a line."""
    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise TrackingError(
            f"MLflow at {shown(uri)} failed: {cause(error)}.",
            "",
            "What is done is kept: run again to go on from it.",
        ) from error


def cause(error: BaseException) -> str:
    """A line on what went wrong: the system's word where a chain of errors began with one, else the error's own."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    told = first if isinstance(first, OSError) and first.strerror else error
    return (str(told).strip() or type(told).__name__).splitlines()[0].rstrip(".")


def connect(uri: str) -> MlflowClient:
    """A client of the store, its database created if need be.

    Raises TrackingError when a server does not answer or a database cannot be opened.
    """
    mlflow_server.check_server(uri)
    # The default of 7 retries blocks for minutes when a server goes away in the middle of a run.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # The run's page is told at the end; MLflow would print it with the password that its address may have.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # It tells every retry, and the failure after the last is told anyhow.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with answering(uri):
        if file := mlflow_server.database(uri):
            file.parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(uri)


def experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment with this name, made if it is new.

    Raises TrackingError when it was deleted: MLflow keeps the name of a deleted experiment taken.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # Another process may be making it at this moment; then there is one to find.
        with suppress(MlflowException):
            client.create_experiment(name, artifact_location=mlflow_server.artifact_root(uri, name))
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise deleted(name)
    if found.tags.get(experiment_page.TAG) != experiment_page.view():
        client.set_experiment_tag(found.experiment_id, experiment_page.TAG, experiment_page.view())
    return str(found.experiment_id)


def deleted(name: str) -> TrackingError:
    """The error for an experiment in MLflow's bin."""
    return TrackingError(
        f"The MLflow experiment {name!r} was deleted.",
        "Its name stays taken until it is restored or purged.",
        "Restore it (mlflow experiments restore), or choose another experiment_name.",
    )


def open_run(track: TrackSettings, recipe: Recipe, name: str, fingerprint: str) -> RunHandle:
    """*The* run of a training run: found by its fingerprint and reopened unless it is finished, or made.

    Its parameters are the recipe's leaves, written once. Raises TrackingError when MLflow does not answer.
    """
    uri = mlflow_server.tracking_uri(track)
    client = connect(uri)
    with answering(uri):
        experiment_id = experiment(client, uri, track.experiment_name)
        run = find_run(client, experiment_id, fingerprint)
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags=birth_tags(fingerprint))
        elif run.info.status != "FINISHED":
            client.update_run(run.info.run_id, status="RUNNING")
        handle = RunHandle(uri, experiment_id, run.info.run_id, client)
        written = run.data.params
        new = [Param(leaf, value) for leaf, value in parameters(recipe).items() if leaf not in written]
        client.log_batch(handle.run_id, params=new)
    return handle


def run_name(recipe: Recipe, log_path: Path) -> str:
    """A run's name in MLflow, whose UI cuts names off: what distinguishes runs comes first.

    A sweep's member is named by what varies, as its directory is (:func:`flows.sweep.sweep_plan.member_name`).
    """
    if "=" in log_path.name:
        return log_path.name.replace("learning_rate=", "lr").replace("dpo_beta=", "beta")
    return f"lr{recipe.train.learning_rate:g} beta{recipe.train.dpo_beta:g} {log_path.name}"


def birth_tags(fingerprint: str) -> dict[str, str]:
    """What a run is known by from its beginning; the UI shows user and source in its table."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
    return {
        FINGERPRINT: fingerprint,
        "mlflow.user": user,
        "mlflow.source.name": "dpo run",
        "mlflow.source.type": "LOCAL",
    }


def find_run(client: MlflowClient, experiment_id: str, fingerprint: str) -> Any:
    """The newest run with this fingerprint, or None."""
    found = client.search_runs([experiment_id], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
    return found[0] if found else None


def parameters(recipe: Recipe) -> dict[str, str]:
    """The recipe as flat leaf names, without the password that an address may carry."""
    told = {leaf: value for section in public(recipe).values() for leaf, value in section.items()}
    return {leaf: ",".join(value) if isinstance(value, list) else str(value) for leaf, value in told.items()}


def last_step(handle: RunHandle) -> int:
    """The last step that the run holds, -1 for none."""
    latest = handle.client.get_run(handle.run_id).data.to_proto().metrics
    aside = (BEFORE, AFTER, SYSTEM)  # their steps are not the journal's
    return max((int(metric.step) for metric in latest if metric.key.split("/")[0] not in aside), default=-1)


def project(handle: RunHandle, log_path: Path) -> int:
    """Log the journal's steps that the run does not hold yet; returns the last step that it holds now.

    Idempotent: a step goes in whole or not at all, times are the journal's own, and a step already there is left alone
    even if the journal was rewritten since (resuming repeats the steps after a checkpoint, with the same values).
    Raises TrackingError when MLflow does not answer; what was logged by then stays.
    """
    with answering(handle.uri):
        held = last_step(handle)
        return log_steps(handle, [step for step in journal.read_steps(log_path / METRICS) if step.step > held], held)


def log_steps(handle: RunHandle, steps: list[StepMetrics], held: int) -> int:
    """Send steps in as few batches as MLflow takes, none of them cut across a step; returns the last step held."""
    for batch in batches(steps):
        handle.client.log_batch(handle.run_id, metrics=[point for step in batch for point in points(step)])
        held = batch[-1].step
    return held


def batches(steps: list[StepMetrics]) -> list[list[StepMetrics]]:
    """Whole steps together, up to MLflow's limit of metrics."""
    size = MOST_METRICS // max((len(step.values) for step in steps), default=1)
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def points(step: StepMetrics) -> list[Metric]:
    """A step's metrics as MLflow has them, its time in milliseconds."""
    return [Metric(name, value, round(step.time * 1000), step.step) for name, value in step.values.items()]


def log_machine(handle: RunHandle, machine: SystemMetrics) -> None:
    """Log the samples that wait, and forget them once they are held."""
    with answering(handle.uri):
        if machine.waiting:
            points = machine.points(handle.client.get_run(handle.run_id).info.start_time)
            for start in range(0, len(points), MOST_METRICS):
                handle.client.log_batch(handle.run_id, metrics=points[start : start + MOST_METRICS])
            machine.waiting = []


def log_result(handle: RunHandle, when: str, result: EvalResult) -> None:
    """The numbers of BEFORE or AFTER training as single values, bars across runs in the UI; unchanged ones stay."""
    with answering(handle.uri):
        run = handle.client.get_run(handle.run_id)
        told = {f"{when}/{name}": value for name, value in result.metrics.items()}
        new = {name: value for name, value in told.items() if run.data.metrics.get(name) != value}
        time = max([run.info.start_time, *(metric.timestamp for metric in run.data.to_proto().metrics)]) + 1
        handle.client.log_batch(handle.run_id, metrics=[Metric(name, value, time, 0) for name, value in new.items()])


def tag(handle: RunHandle, tags: Mapping[str, str]) -> None:
    """Set tags of the run."""
    with answering(handle.uri):
        handle.client.log_batch(handle.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def close_run(handle: RunHandle, status: str) -> None:
    """End the run as FINISHED, FAILED or KILLED; a finished one stays finished."""
    with answering(handle.uri):
        if handle.client.get_run(handle.run_id).info.status != "FINISHED":
            handle.client.set_terminated(handle.run_id, status=status)
