"""Registered models by name, for whoever opens models: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or a
name alone, which is its champion."""

import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.errors import RecipeError, TrackingError
from dpo_core.model.source import describe
from dpo_core.produce import store
from dpo_core.records import ModelSource
from dpo_core.settings import read_recipe
from flows.registry import CHAMPION, model_of
from flows.servable import WEIGHTS
from flows.server import database, tracking_uri
from flows.tracking import answering, connect

SCHEME = "models:/"
STAGE = "registered"


def directory(name: str) -> Path | None:
    """The weights of a registered model, brought to this disk once; None for a name of another kind.

    The registry is that of the environment (DPO_TRACKING_URI, MLFLOW_TRACKING_URI, else ./mlruns). Raises RecipeError
    when it has no such model, TrackingError when it does not answer.
    """
    named = name.startswith(SCHEME)
    if not named and ":" in name:
        return None
    uri = tracking_uri(read_recipe(None, ()).track)
    file = database(uri)
    if not named and file and not file.is_file():  # no registry yet, and asking would make one
        return None
    client = connect(uri)
    with answering(uri):
        version = find(client, name.removeprefix(SCHEME), name)
        return weights(client, version)


def find(client: MlflowClient, address: str, name: str) -> ModelVersion:
    """The version at ``<name>@<alias>``, ``<name>/<version>``, or of a name alone the champion, else the newest."""
    match = re.fullmatch(r"(?P<model>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))?", address)
    if match is None:
        raise RecipeError(f"{name} names no model.", "Write models:/<name>@<alias> or models:/<name>/<version>.", "")
    model = match["model"]
    try:
        if match["version"]:
            return client.get_model_version(model, match["version"])
        if match["alias"]:
            return client.get_model_version_by_alias(model, match["alias"])
        aliases = client.get_registered_model(model).aliases
        if CHAMPION in aliases:
            return client.get_model_version_by_alias(model, CHAMPION)
        [newest] = client.search_model_versions(f"name = '{model}'", max_results=1, order_by=["version_number DESC"])
    except (MlflowException, ValueError) as error:
        known = sorted(found.name for found in client.search_registered_models())
        raise RecipeError(
            f"There is no registered model {name}.",
            f"The registry has {', '.join(known) if known else 'none'}.",
            "Check the name; dpo ui shows versions and aliases.",
        ) from error
    return newest


def weights(client: MlflowClient, version: ModelVersion) -> Path:
    """The checkpoint inside a version, from the store or downloaded into it.

    Raises TrackingError for a version that holds none.
    """
    place, model_id = store(read_recipe(None, ())), model_of(version)
    found = place.find(STAGE, model_id, ModelSource)
    if found is not None:
        return found.path
    repository = get_artifact_repository(
        client.get_logged_model(model_id).artifact_location, tracking_uri=client.tracking_uri
    )
    with place.write(STAGE, model_id) as draft:
        if not draft.there:
            downloaded = Path(repository.download_artifacts(WEIGHTS, str(draft.path)))  # type: ignore[no-untyped-call]
            try:
                source = describe(downloaded, f"{SCHEME}{version.name}/{version.version}")
            except RecipeError as error:
                raise TrackingError(
                    f"Version {version.version} of {version.name} holds no weights: {error}", "dpo registers them.", ""
                ) from error
            draft.publish(source.model_copy(update={"path": draft.final / downloaded.relative_to(draft.path)}))
    return place.entry(STAGE, model_id) / WEIGHTS
