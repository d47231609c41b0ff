"""Trained models as versions in MLflow's registry: servable, found again by what made them, whole or not there."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion as Found
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import shown
from dpo_core.errors import RecipeError
from dpo_core.records import Checkpoint, EvalResult, ModelVersion, PairSet, RenderedSet
from dpo_core.stages.stage import StageResult
from flows.registry.logged_model import BASE_MEASURED, MEASURED, WEIGHTS, measurements, upload, upload_measured
from flows.tracking.mlflow_run import AFTER, FINGERPRINT, RunHandle, answering

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
LOGGED = "models:/"  # before a logged model's id
CHECKPOINT = "dpo.checkpoint"  # a logged model's tag


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model with what it was made from and how it and its base measured."""

    checkpoint: Checkpoint
    pairs: PairSet
    rendered: RenderedSet
    before: EvalResult
    after: EvalResult

    @property
    def fingerprint(self) -> str:
        """The same for the same weights, measured the same."""
        return fingerprint.of_value([self.checkpoint.fingerprint, self.before.fingerprint, self.after.fingerprint])


@dataclass(frozen=True, slots=True)
class VersionNotes:
    """What a version says of itself: tags, and its card, a description in Markdown."""

    tags: Mapping[str, str]
    card: str


def registered_name(recipe: Recipe) -> str:
    """The model's name in the registry: the setting, or ``dpo-<dataset>-<model>``.

    Raises RecipeError for a name that the registry cannot take.
    """
    name = recipe.promote.registered_model_name
    if name is None:
        parts = "dpo", Path(recipe.data.dataset).name.split(".")[0], Path(recipe.model.model_name or "model").name
        return re.sub(r"[^\w.-]+", "_", "-".join(parts))
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        raise RecipeError(
            f"registered_model_name={name!r} cannot be used.",
            "A name in the registry has letters, digits, spaces and . + - _ only.",
            "Choose another, such as dpo-helpful.",
        )
    return name


def register(handle: RunHandle, candidate: Candidate, name: str, about: VersionNotes) -> StageResult[ModelVersion]:
    """The version of this candidate: the one that exists and is whole, or a new one with the alias ``candidate``.

    If any step of making it fails, all of it is taken back. Raises TrackingError when MLflow does not do its part.
    """
    with answering(handle.uri):
        found = find_version(handle.client, name, candidate)
        if found is not None:
            return StageResult(record(handle, found), True)
        return StageResult(record(handle, add_version(handle, candidate, name, about)), False)


def record(handle: RunHandle, version: Found) -> ModelVersion:
    """A version as the stages know it."""
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        run_id=version.run_id or handle.run_id,
        experiment_id=handle.experiment_id,
        tracking_uri=shown(handle.uri),
        model_uri=f"models:/{version.name}/{version.version}",
    )


def find_version(client: MlflowClient, name: str, candidate: Candidate) -> Found | None:
    """The newest version made of this candidate whose files are all there."""
    query = f"name = '{name}' and tags.`{FINGERPRINT}` = '{candidate.fingerprint}'"
    found = client.search_model_versions(query, order_by=["version_number DESC"])
    return next((version for version in found if whole(client, version, candidate.checkpoint)), None)


def whole(client: MlflowClient, version: Found, checkpoint: Checkpoint) -> bool:
    """Whether a version's model is there with every file of the checkpoint in its right size, and its measurements."""
    try:
        files = {file.path for file in client.list_logged_model_artifacts(model_of(version))}
    except (MlflowException, OSError):
        return False
    return MEASURED in files and holds(client, model_of(version), checkpoint)


def holds(client: MlflowClient, identity: str, checkpoint: Checkpoint) -> bool:
    """Whether a logged model has every file of the checkpoint in its right size."""
    try:
        stored = client.list_logged_model_artifacts(identity, WEIGHTS)
    except (MlflowException, OSError):
        return False
    sizes = {Path(file.path).name: file.file_size for file in stored}
    expected = {path.name: path.stat().st_size for path in checkpoint.path.iterdir() if path.is_file()}
    return expected.items() <= sizes.items()


def log_model(handle: RunHandle, checkpoint: Checkpoint, name: str) -> LoggedModel:
    """The checkpoint as a model of the run that no version was made of yet, and that loads: found, or uploaded.

    Others without a version are what an attempt that was killed left, and are discarded.
    """
    client, found = handle.client, None
    for model in unregistered(handle):
        told = model.status, model.name, model.tags.get(CHECKPOINT)
        fits = told == (LoggedModelStatus.READY, name, checkpoint.fingerprint)
        if found is None and fits and holds(client, model.model_id, checkpoint):
            found = model
        else:
            discard(client, model)
    return found or new_model(handle, checkpoint, name)


def new_model(handle: RunHandle, checkpoint: Checkpoint, name: str) -> LoggedModel:
    """Upload the checkpoint; when that fails, nothing of it stays."""
    client, tags = handle.client, {CHECKPOINT: checkpoint.fingerprint}
    model = client.create_logged_model(
        handle.experiment_id, name=name, source_run_id=handle.run_id, tags=tags, model_type="dpo"
    )
    try:
        upload(client, model, checkpoint)
        return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        discard(client, model)
        raise


def add_version(handle: RunHandle, candidate: Candidate, name: str, about: VersionNotes) -> Found:
    """Register the model with what was measured; each step notes how it is undone, should a later one fail."""
    client, step = handle.client, candidate.checkpoint.step
    with ExitStack() as undo:
        model = log_model(handle, candidate.checkpoint, name)
        undo.callback(discard, client, model)
        results = {MEASURED: candidate.after, BASE_MEASURED: candidate.before}
        told = {file: measurements(result, "it") for file, result in results.items()}
        upload_measured(client, model.model_id, told)
        client.set_logged_model_tags(model.model_id, dict(about.tags))
        log_metrics(handle, model.model_id, candidate.pairs)
        if created(client, name):
            undo.callback(remove_if_empty, client, name)
        with default_store(handle.uri):
            version = client.create_model_version(
                name,
                source=f"{LOGGED}{model.model_id}",
                run_id=handle.run_id,
                tags={**about.tags, FINGERPRINT: candidate.fingerprint},
                description=about.card,
                model_id=model.model_id,
            )
        undo.callback(client.delete_model_version, name, version.version)
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        # What the model's page links to its version by.
        here = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": here})
        client.log_outputs(handle.run_id, [LoggedModelOutput(model.model_id, step=step)])
        undo.pop_all()
    return version


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """This store is the process's default inside: a registry in sqlite looks models up there, whatever its client."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


def model_of(version: Found) -> str:
    """The id of the logged model that a version was made of; the registry keeps it in the source alone."""
    return (version.source or "").removeprefix(LOGGED)


def discard(client: MlflowClient, model: LoggedModel) -> None:
    """Take a logged model back, its files too where the store can delete them."""
    with suppress(MlflowException, OSError, NotImplementedError):
        repository = get_artifact_repository(model.artifact_location, tracking_uri=client.tracking_uri)
        repository.delete_artifacts()  # type: ignore[no-untyped-call]
    client.delete_logged_model(model.model_id)


def unregistered(handle: RunHandle) -> list[LoggedModel]:
    """The models of this run that did not become a version."""
    versions = handle.client.search_model_versions(f"run_id = '{handle.run_id}'")
    kept = {model_of(version) for version in versions}
    query = f"source_run_id = '{handle.run_id}'"
    found = handle.client.search_logged_models([handle.experiment_id], filter_string=query)
    return [model for model in found if model.model_id not in kept]


def created(client: MlflowClient, name: str) -> bool:
    """Make the registered model unless it exists; whether it was made now."""
    with suppress(MlflowException):
        client.get_registered_model(name)
        return False
    try:
        client.create_registered_model(name, description="Trained with DPO; champion is the version to serve.")
    except MlflowException:
        client.get_registered_model(name)  # another process made it at this moment; else that fails as making it did
        return False
    return True


def remove_if_empty(client: MlflowClient, name: str) -> None:
    """Delete a registered model that has no version."""
    if not client.search_model_versions(f"name = '{name}'", max_results=1):
        client.delete_registered_model(name)


def log_metrics(handle: RunHandle, model_id: str, pairs: PairSet) -> None:
    """The run's final numbers once more as the model's, whose page and versions then show them; those of held-out pairs
    with the data that they are of."""
    held = handle.client.get_run(handle.run_id).data.to_proto().metrics
    final = [metric for metric in held if metric.key.startswith(f"{AFTER}/")]
    data = {"dataset_name": held_out_name(pairs), "dataset_digest": pairs.fingerprint}
    told = [
        Metric(
            one.key,
            one.value,
            one.timestamp,
            one.step,
            model_id,
            run_id=handle.run_id,
            **(data if one.key.startswith(f"{AFTER}/test/") else {}),
        )
        for one in final
    ]
    handle.client.log_batch(handle.run_id, metrics=told)


def held_out_name(pairs: PairSet) -> str:
    """What the held-out pairs are called among a run's inputs."""
    return f"{Path(pairs.dataset).name} test"
