"""Registered models by name, for whoever opens models: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or a
name alone, which is its champion."""

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
from flows.registry.versions import CHAMPION, model_of
from flows.tracking.mlflow_run import answering, cause, connect
from flows.tracking.mlflow_server import database, tracking_uri

SCHEME = "models:/"
STAGE = "registered"


def directory(name: str) -> Path | None:
    """The weights of a registered model: where they lie in a local store, else brought to this disk once. None for a
    name of another kind.

    The registry is that of the environment (DPO_TRACKING_URI, MLFLOW_TRACKING_URI, else ./mlruns). Raises RecipeError
    when it has no such model, TrackingError when it does not answer or the files are gone.
    """
    named = name.startswith(SCHEME)
    if not named and ":" in name:
        return None
    uri = tracking_uri(read_recipe(None, ()).track)
    file = database(uri)
    if not named and file and not file.is_file():  # no registry yet, and asking would make one
        return None
    registry = Registry(uri, connect(uri))
    return weights(registry, find(registry, name.removeprefix(SCHEME)))


def find(registry: Registry, address: str) -> ModelVersion:
    """The version at ``<name>@<alias>``, ``<name>/<version>``, or of a name alone the champion, else the newest.

    Raises RecipeError when there is none.
    """
    if "@" in address or "/" in address:
        return model_admin.find(registry, address)
    name = model_admin.named(registry, address)
    with answering(registry.uri):
        if CHAMPION in registry.client.get_registered_model(name).aliases:
            return registry.client.get_model_version_by_alias(name, CHAMPION)
        query, newest = f"name = '{name}'", ["version_number DESC"]
        found = registry.client.search_model_versions(query, max_results=1, order_by=newest)
    if not found:
        raise RecipeError(f"{name} has no versions.", "dpo run registers them.", "See dpo models.")
    return found[0]


def weights(registry: Registry, version: ModelVersion) -> Path:
    """The checkpoint inside a version.

    Raises TrackingError for a version that holds none.
    """
    place, model_id = store_of(read_recipe(None, ())), model_of(version)
    if place.find(STAGE, model_id, ModelSource) is not None:
        return place.entry(STAGE, model_id) / WEIGHTS
    try:
        location = registry.client.get_logged_model(model_id).artifact_location
        repository = get_artifact_repository(location, tracking_uri=registry.uri)
        if isinstance(repository, LocalArtifactRepository):
            return Path(repository.download_artifacts(WEIGHTS))  # type: ignore[no-untyped-call]
        with place.write(STAGE, model_id) as draft:
            if not draft.there:
                source = fetched(repository, draft.path, f"{SCHEME}{version.name}/{version.version}")
                draft.publish(source.model_copy(update={"path": draft.final / WEIGHTS}))
    except (MlflowException, OSError, RecipeError) as error:
        raise TrackingError(
            f"The files of version {version.version} of {version.name} cannot be had: {cause(error)}.",
            "A version is its artifacts.",
            "dpo run with the same recipe registers it again.",
        ) from error
    return place.entry(STAGE, model_id) / WEIGHTS


def fetched(repository: ArtifactRepository, place: Path, name: str) -> ModelSource:
    """A version's checkpoint, downloaded into a directory."""
    return describe(Path(repository.download_artifacts(WEIGHTS, str(place))), name)  # type: ignore[no-untyped-call]
