"""Model URIs of registered models: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or a name alone, which
stands for its champion."""

from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from dpo_core.cache.store import store_of
from dpo_core.config.settings import read_recipe
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.model.locate import describe
from dpo_core.records import ModelSource
from flows.registry import model_admin
from flows.registry.logged_model import WEIGHTS
from flows.registry.model_admin import Registry
from flows.registry.versions import CHAMPION, logged_model_id
from flows.tracking.mlflow_run import as_tracking_error, connect, error_line
from flows.tracking.mlflow_server import database_path, tracking_uri

SCHEME = "models:/"
STAGE = "registered"


def directory(name: str) -> Path | None:
    """Return the checkpoint of a registered model, downloaded once unless the store is local; None for other names.

    The registry is that of the environment (DPO_TRACKING_URI, MLFLOW_TRACKING_URI, else ./mlruns). Raises RecipeError
    when it has no such model, TrackingError when it does not answer or the files are gone.
    """
    named = name.startswith(SCHEME)
    if not named and ":" in name:
        return None
    uri = tracking_uri(read_recipe(None, ()).track)
    file = database_path(uri)
    if not named and file and not file.is_file():  # connecting would create a registry
        return None
    registry = Registry(uri, connect(uri))
    return checkpoint_directory(registry, resolve_version(registry, name.removeprefix(SCHEME)))


def resolve_version(registry: Registry, address: str) -> ModelVersion:
    """Return the version at ``<name>@<alias>`` or ``<name>/<version>``; for a name alone the champion, else the newest.

    Raises RecipeError when there is no such version.
    """
    if "@" in address or "/" in address:
        return model_admin.find_version(registry, address)
    name = model_admin.resolve_model_name(registry, address)
    with as_tracking_error(registry.uri):
        if CHAMPION in registry.client.get_registered_model(name).aliases:
            return registry.client.get_model_version_by_alias(name, CHAMPION)
        query, newest = f"name = '{name}'", ["version_number DESC"]
        versions = registry.client.search_model_versions(query, max_results=1, order_by=newest)
    if not versions:
        raise RecipeError(f"{name} has no versions.", "dpo run registers them.", "See dpo models.")
    return versions[0]


def checkpoint_directory(registry: Registry, version: ModelVersion) -> Path:
    """Return the directory of a version's checkpoint.

    Raises TrackingError when its files cannot be read.
    """
    store, model_id = store_of(read_recipe(None, ())), logged_model_id(version)
    if store.find(STAGE, model_id, ModelSource) is not None:
        return store.entry(STAGE, model_id) / WEIGHTS
    try:
        location = registry.client.get_logged_model(model_id).artifact_location
        repository = get_artifact_repository(location, tracking_uri=registry.uri)
        if isinstance(repository, LocalArtifactRepository):
            return Path(repository.download_artifacts(WEIGHTS))  # type: ignore[no-untyped-call]
        with store.write(STAGE, model_id) as draft:
            if not draft.there:
                source = download_checkpoint(repository, draft.path, f"{SCHEME}{version.name}/{version.version}")
                draft.publish(source.model_copy(update={"path": draft.final / WEIGHTS}))
    except (MlflowException, OSError, RecipeError) as error:
        raise TrackingError(
            f"The files of version {version.version} of {version.name} cannot be read: {error_line(error)}.",
            "A version consists of its artifacts in the store.",
            "dpo run with the same recipe registers it again.",
        ) from error
    return store.entry(STAGE, model_id) / WEIGHTS


def download_checkpoint(repository: ArtifactRepository, path: Path, name: str) -> ModelSource:
    """Download a version's checkpoint into a directory."""
    return describe(Path(repository.download_artifacts(WEIGHTS, str(path))), name)  # type: ignore[no-untyped-call]
