"""Model versions in MLflow's registry, found again by the fingerprint of their candidate; a failed step leaves none."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import hide_password
from dpo_core.errors import RecipeError
from dpo_core.records import Checkpoint, EvalResult, ModelVersion, PairSet, RenderedSet
from dpo_core.stages.stage import StageResult
from flows.registry.logged_model import (
    BASE_MEASUREMENTS_FILE,
    MEASUREMENTS_FILE,
    WEIGHTS,
    measurements,
    upload_measurements,
    upload_model,
)
from flows.tracking.mlflow_run import AFTER, FINGERPRINT, RunHandle, as_tracking_error

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
LOGGED_MODEL_URI = "models:/"  # followed by a logged model's id
CHECKPOINT_TAG = "dpo.checkpoint"  # a logged model's tag


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model, its data, and the evaluations of its base (``before``) and of itself (``after``)."""

    checkpoint: Checkpoint
    pairs: PairSet
    rendered: RenderedSet
    before: EvalResult
    after: EvalResult

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights and both evaluations."""
        return fingerprint.of_value([self.checkpoint.fingerprint, self.before.fingerprint, self.after.fingerprint])


@dataclass(frozen=True, slots=True)
class VersionNotes:
    """Tags of a new version and its description (``card``) in Markdown."""

    tags: Mapping[str, str]
    card: str


def registered_model_name(recipe: Recipe) -> str:
    """Return the model's name in the registry: the setting, or ``dpo-<dataset>-<model>``.

    Raises RecipeError for a name that the registry does not accept.
    """
    name = recipe.promote.registered_model_name
    if name is None:
        parts = "dpo", Path(recipe.data.dataset).name.split(".")[0], Path(recipe.model.model_name or "model").name
        return re.sub(r"[^\w.-]+", "_", "-".join(parts))
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        raise RecipeError(
            f"registered_model_name={name!r} is no name for a registered model.",
            "A name consists of letters, digits, spaces and . + - _ only.",
            "Choose another, such as dpo-helpful.",
        )
    return name


def register(
    handle: RunHandle, candidate: Candidate, name: str, notes: Callable[[], VersionNotes]
) -> StageResult[ModelVersion]:
    """Return the candidate's version: a complete existing one, or a new one with the alias ``candidate``.

    ``notes`` is called only for a new version; it may log to the run first. When a step of registering fails, all of
    its steps are undone.

    Raises TrackingError when MLflow fails.
    """
    with as_tracking_error(handle.uri):
        version = find_version(handle.client, name, candidate)
    if version is not None:
        return StageResult(version_record(handle, version), True)
    version_notes = notes()
    with as_tracking_error(handle.uri):
        # The notes took seconds, in which another process may have registered the same candidate.
        version = find_version(handle.client, name, candidate)
        found = version is not None
        version = version or create_version(handle, candidate, name, version_notes)
        return StageResult(version_record(handle, version), found)


def version_record(handle: RunHandle, version: RegistryVersion) -> ModelVersion:
    """Return the pipeline's record of a version; ``handle`` is its run."""
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        run_id=version.run_id or handle.run_id,
        experiment_id=handle.experiment_id,
        tracking_uri=hide_password(handle.uri),
        model_uri=f"models:/{version.name}/{version.version}",
    )


def find_version(client: MlflowClient, name: str, candidate: Candidate) -> RegistryVersion | None:
    """Return the newest complete version of this candidate, or None."""
    query = f"name = '{name}' and tags.`{FINGERPRINT}` = '{candidate.fingerprint}'"
    versions = client.search_model_versions(query, order_by=["version_number DESC"])
    return next((version for version in versions if is_complete(client, version, candidate.checkpoint)), None)


def is_complete(client: MlflowClient, version: RegistryVersion, checkpoint: Checkpoint) -> bool:
    """Whether a version has its measurements and every file of the checkpoint in its full size."""
    try:
        files = {file.path for file in client.list_logged_model_artifacts(logged_model_id(version))}
    except (MlflowException, OSError):
        return False
    return MEASUREMENTS_FILE in files and has_checkpoint_files(client, logged_model_id(version), checkpoint)


def has_checkpoint_files(client: MlflowClient, model_id: str, checkpoint: Checkpoint) -> bool:
    """Whether a logged model has every file of the checkpoint in its full size."""
    try:
        stored = client.list_logged_model_artifacts(model_id, WEIGHTS)
    except (MlflowException, OSError):
        return False
    sizes = {Path(file.path).name: file.file_size for file in stored}
    expected = {path.name: path.stat().st_size for path in checkpoint.path.iterdir() if path.is_file()}
    return expected.items() <= sizes.items()


def find_or_upload_model(handle: RunHandle, checkpoint: Checkpoint, name: str) -> LoggedModel:
    """Return the run's complete logged model of the checkpoint that has no version yet; upload one if there is none.

    Other models without a version are left over from killed attempts and are deleted.
    """
    client, complete_model = handle.client, None
    for model in unregistered_models(handle):
        origin = model.status, model.name, model.tags.get(CHECKPOINT_TAG)
        matches = origin == (LoggedModelStatus.READY, name, checkpoint.fingerprint)
        if complete_model is None and matches and has_checkpoint_files(client, model.model_id, checkpoint):
            complete_model = model
        else:
            delete_logged_model(client, model)
    return complete_model or upload_new_model(handle, checkpoint, name)


def upload_new_model(handle: RunHandle, checkpoint: Checkpoint, name: str) -> LoggedModel:
    """Upload the checkpoint as a logged model; a failed upload is deleted."""
    client, tags = handle.client, {CHECKPOINT_TAG: checkpoint.fingerprint}
    model = client.create_logged_model(
        handle.experiment_id, name=name, source_run_id=handle.run_id, tags=tags, model_type="dpo"
    )
    try:
        upload_model(client, model, checkpoint)
        return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        delete_logged_model(client, model)
        raise


def create_version(handle: RunHandle, candidate: Candidate, name: str, notes: VersionNotes) -> RegistryVersion:
    """Create a version with measurements, tags and metrics; a step that fails undoes the steps before it."""
    client, step = handle.client, candidate.checkpoint.step
    with ExitStack() as undo:
        model = find_or_upload_model(handle, candidate.checkpoint, name)
        undo.callback(delete_logged_model, client, model)
        results = {MEASUREMENTS_FILE: candidate.after, BASE_MEASUREMENTS_FILE: candidate.before}
        by_file = {file: measurements(result, "it") for file, result in results.items()}
        upload_measurements(client, model.model_id, by_file)
        client.set_logged_model_tags(model.model_id, dict(notes.tags))
        log_model_metrics(handle, model.model_id, candidate.pairs)
        if create_registered_model(client, name):
            undo.callback(delete_if_empty, client, name)
        with default_tracking_uri(handle.uri):
            version = client.create_model_version(
                name,
                source=f"{LOGGED_MODEL_URI}{model.model_id}",
                run_id=handle.run_id,
                tags={**notes.tags, FINGERPRINT: candidate.fingerprint},
                description=notes.card,
                model_id=model.model_id,
            )
        undo.callback(client.delete_model_version, name, version.version)
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        # MLflow's page of the model links to its version by this tag.
        links = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": links})
        client.log_outputs(handle.run_id, [LoggedModelOutput(model.model_id, step=step)])
        undo.pop_all()
    return version


@contextmanager
def default_tracking_uri(uri: str) -> Iterator[None]:
    """Make a store the process's default inside the block: a sqlite registry looks models up there, not in its own."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


def logged_model_id(version: RegistryVersion) -> str:
    """Return the id of a version's logged model; the registry stores it only in the source."""
    return (version.source or "").removeprefix(LOGGED_MODEL_URI)


def delete_logged_model(client: MlflowClient, model: LoggedModel) -> None:
    """Delete a logged model, and its files if the store supports that."""
    with suppress(MlflowException, OSError, NotImplementedError):
        repository = get_artifact_repository(model.artifact_location, tracking_uri=client.tracking_uri)
        repository.delete_artifacts()  # type: ignore[no-untyped-call]
    client.delete_logged_model(model.model_id)


def unregistered_models(handle: RunHandle) -> list[LoggedModel]:
    """Return the logged models of this run without a version."""
    versions = handle.client.search_model_versions(f"run_id = '{handle.run_id}'")
    registered = {logged_model_id(version) for version in versions}
    query = f"source_run_id = '{handle.run_id}'"
    models = handle.client.search_logged_models([handle.experiment_id], filter_string=query)
    return [model for model in models if model.model_id not in registered]


def create_registered_model(client: MlflowClient, name: str) -> bool:
    """Create a registered model unless it exists; True when this call created it."""
    with suppress(MlflowException):
        client.get_registered_model(name)
        return False
    try:
        client.create_registered_model(name, description="Trained with DPO; champion is the version to serve.")
    except MlflowException:
        # Another process created it at this moment; after any other failure this raises as well.
        client.get_registered_model(name)
        return False
    return True


def delete_if_empty(client: MlflowClient, name: str) -> None:
    """Delete a registered model that has no version."""
    if not client.search_model_versions(f"name = '{name}'", max_results=1):
        client.delete_registered_model(name)


def log_model_metrics(handle: RunHandle, model_id: str, pairs: PairSet) -> None:
    """Log the run's final metrics again as the model's, so that its page and versions show them.

    Metrics of held-out pairs carry the name and digest of their dataset.
    """
    run_metrics = handle.client.get_run(handle.run_id).data.to_proto().metrics
    final = [metric for metric in run_metrics if metric.key.startswith(f"{AFTER}/")]
    data = {"dataset_name": test_dataset_name(pairs), "dataset_digest": pairs.fingerprint}
    model_metrics = [
        Metric(
            metric.key,
            metric.value,
            metric.timestamp,
            metric.step,
            model_id,
            run_id=handle.run_id,
            **(data if metric.key.startswith(f"{AFTER}/test/") else {}),
        )
        for metric in final
    ]
    handle.client.log_batch(handle.run_id, metrics=model_metrics)


def test_dataset_name(pairs: PairSet) -> str:
    """Return the name of the held-out pairs among a run's inputs."""
    return f"{Path(pairs.dataset).name} test"
