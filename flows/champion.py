"""The champion of a registered model: the rule applied, the aliases moved, the reason written where people look."""

import json
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as Found
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult, ModelVersion, Promotion
from flows.promotion import Decision, Measured, decide
from flows.registry import CHAMPION, PREVIOUS, model_of
from flows.servable import MEASURED, measurements
from flows.tracking import RunHandle, answering, tag

REASON, PROMOTED = "dpo.promotion", "dpo.promoted"


def promote(
    handle: RunHandle, version: ModelVersion, before: EvalResult, after: EvalResult, auto_promote: bool
) -> Promotion:
    """Compare a version with the champion (the first one with its base) and move the alias if the evidence allows it.

    ``before`` and ``after`` are the evaluations of the base and of the version. The reason becomes a tag of the version
    and of the run. ``champion_version`` is the one that holds the alias afterwards. A version that is the champion
    already stays so. Raises TrackingError when MLflow does not do its part; the
    champion has not moved then.
    """
    client = handle.client
    with answering(handle.uri):
        champion = by_alias(client, version.name, CHAMPION)
        held = int(champion.version) if champion else None
        if champion and held == version.version:
            reason = champion.tags.get(REASON, f"version {held} holds the alias {CHAMPION} already.")
            return told(version, Decision(True, reason), held)
        rival = read_measurements(client, champion) if champion else None
        ours = measurements(after, f"version {version.version}")
        decision = decide(ours, rival, measurements(before, "its base"))
        moved = decision.promoted and auto_promote
        if decision.promoted and not auto_promote:
            decision = Decision(False, f"The alias is left alone (auto_promote=false), although {decision.reason}")
        note(handle, version, decision)
        if moved:
            crown(client, version.name, version.version, held)
        return told(version, decision, version.version if moved else held)


def told(version: ModelVersion, decision: Decision, champion: int | None) -> Promotion:
    """A decision as the stages know it."""
    return Promotion(
        promoted=decision.promoted,
        reason=decision.reason,
        name=version.name,
        version=version.version,
        champion_version=champion,
    )


def by_alias(client: MlflowClient, name: str, alias: str) -> Found | None:
    """The version with an alias, if there is one."""
    holder = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, holder) if holder else None


def crown(client: MlflowClient, name: str, version: int, before: int | None) -> None:
    """Move the alias ``champion`` to a version, and ``previous`` to the one that had it (the way back)."""
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    client.set_registered_model_alias(name, CHAMPION, str(version))


def note(handle: RunHandle, version: ModelVersion, decision: Decision) -> None:
    """Write the decision down with the version and with its run."""
    tags = {REASON: decision.reason, PROMOTED: str(decision.promoted).lower()}
    for key, value in tags.items():
        handle.client.set_model_version_tag(version.name, str(version.version), key, value)
    tag(handle, tags)


def read_measurements(client: MlflowClient, version: Found) -> Measured:
    """What was measured of a registered version.

    Raises TrackingError when the version was not registered by this project.
    """
    try:
        location = client.get_logged_model(model_of(version)).artifact_location
        repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
        with tempfile.TemporaryDirectory() as temporary:
            path = repository.download_artifacts(MEASURED, temporary)  # type: ignore[no-untyped-call]
            told = json.loads(Path(path).read_text())
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            f"The champion, version {version.version} of {version.name}, comes without its measurements ({error}).",
            "A candidate is compared with what the champion measured when it was registered.",
            f"Remove the alias {CHAMPION} from it, or give it to a version that dpo registered.",
        ) from error
    return Measured(**{**told, "name": f"version {version.version}"})
