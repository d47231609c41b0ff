"""The champion of a registered model: the gates applied, the aliases moved, the reasons written where people look."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as Found
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.config.recipe import PromoteSettings
from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult, ModelVersion, Promotion
from flows.registry.alias_lock import locked
from flows.registry.gates import PASSED, TAG, Gate, GateReport, judge
from flows.registry.logged_model import BASE_MEASURED, MEASURED, measurements
from flows.registry.promotion_rule import ModelMeasurements
from flows.registry.versions import CHAMPION, PREVIOUS, model_of
from flows.tracking.mlflow_run import RunHandle, answering, tag

REASON, PROMOTED = "dpo.promotion", "dpo.promoted"

NOTE, AFTER_IT = "mlflow.note.content", "Repeat it with"
PARAGRAPH = re.compile(rf"^Version \d+ of \*\*.*?(?=\n\n{AFTER_IT})", re.MULTILINE | re.DOTALL)

Ask = Callable[[GateReport], Gate]


@dataclass(frozen=True, slots=True)
class PromotionCase:
    """A version that might become the champion, what it measured, and what its base did (if that is known)."""

    version: ModelVersion
    ours: ModelMeasurements
    base: ModelMeasurements | None


def case(version: ModelVersion, before: EvalResult, after: EvalResult) -> PromotionCase:
    """A version from the evaluations of its base and of itself."""
    return PromotionCase(version, measurements(after, f"version {version.version}"), measurements(before, "its base"))


def promote(handle: RunHandle, case: PromotionCase, rule: PromoteSettings, ask: Ask | None = None) -> Promotion:
    """Take a version through the gates, and move the alias if all let it pass.

    ``ask`` is asked last, if given: a person's approval. Reasons become tags of the version and of the run.
    ``champion_version`` is the one that holds the alias afterwards. A version that is the champion already stays so.
    Two candidates at the same time are decided one after the other (:mod:`flows.registry.alias_lock`), the second
    against the first.
    Raises TrackingError when MLflow does not do its part; the champion has not moved then.
    """
    client, name = handle.client, case.version.name
    with answering(handle.uri):
        seen = by_alias(client, name, CHAMPION)
        answer = approval(client, case, rule, ask) if number(seen) != case.version.version else None
        with locked(client, name) as lock:
            champion = by_alias(client, name, CHAMPION)
            held = number(champion)
            if champion and held == case.version.version:
                return outcome(case, remembered(champion), held)
            judgement = weigh(client, case, champion, rule)
            if answer:
                judgement = answered(judgement, answer, None if number(seen) == held else held)
            lock.check()
            note(handle, case.version, judgement)
            if judgement.promoted:
                crown(client, name, case.version.version, held)
            return outcome(case, judgement, case.version.version if judgement.promoted else held)


def weigh(client: MlflowClient, case: PromotionCase, champion: Found | None, rule: PromoteSettings) -> GateReport:
    """The gates' verdict against a champion; without ``auto_promote`` it is recorded and nothing more."""
    judgement = judge(case.ours, read_measurements(client, champion) if champion else None, case.base, rule)
    if judgement.promoted and not rule.auto_promote:
        told = f"The alias is left alone (auto_promote=false), although {would(judgement.reason)}"
        return replace(judgement, promoted=False, reason=told)
    return judgement


def approval(client: MlflowClient, case: PromotionCase, rule: PromoteSettings, ask: Ask | None) -> Gate | None:
    """What a person says to a version that passes all else; nobody is asked about one that does not."""
    if ask is None:
        return None
    judgement = weigh(client, case, by_alias(client, case.version.name, CHAMPION), rule)
    return ask(judgement) if judgement.promoted else None


def answered(judgement: GateReport, answer: Gate, moved_to: int | None) -> GateReport:
    """The judgement with a person's answer, which counts only for the champion that the person was shown."""
    if answer.passed and moved_to is not None:
        told = f"the champion became version {moved_to} while a person was asked, so the approval does not count."
        answer = replace(answer, passed=False, reason=told)
    gates = (*judgement.gates, answer)
    if not judgement.promoted or answer.passed:
        told = judgement.reason if not judgement.promoted else f"{judgement.reason.rstrip('.')}; {answer.reason}"
        return replace(judgement, reason=told, gates=gates)
    told = f"The alias is left alone, {answer.reason.rstrip('.')}, although {would(judgement.reason)}"
    return GateReport(False, told, gates)


def would(reason: str) -> str:
    """Why a version is promoted, of one that is not for another reason."""
    return reason.replace(" is promoted ", " would be promoted ", 1)


def remembered(champion: Found) -> GateReport:
    """What was said when a version became the champion."""
    told = champion.tags.get(REASON, f"version {champion.version} holds the alias {CHAMPION} already.")
    gates = {name.removeprefix(TAG): value for name, value in champion.tags.items() if name.startswith(TAG)}
    found = [Gate(name, said.startswith(PASSED), said.partition(": ")[2]) for name, said in gates.items()]
    return GateReport(True, told, tuple(found))


def number(version: Found | None) -> int | None:
    """The number of a version, if there is one."""
    return int(version.version) if version else None


def outcome(case: PromotionCase, judgement: GateReport, champion: int | None) -> Promotion:
    """A judgement as the stages know it."""
    return Promotion(
        promoted=judgement.promoted,
        reason=judgement.reason,
        name=case.version.name,
        version=case.version.version,
        champion_version=champion,
        gates={gate.name: str(gate) for gate in judgement.gates},
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


def note(handle: RunHandle, version: ModelVersion, judgement: GateReport) -> None:
    """Write the judgement down with the version and with its run, in whose description it replaces an earlier one."""
    tags = {REASON: judgement.reason, PROMOTED: str(judgement.promoted).lower(), **judgement.tags()}
    for key, value in tags.items():
        handle.client.set_model_version_tag(version.name, str(version.version), key, value)
    gates = {gate.name: str(gate) for gate in judgement.gates}
    said = paragraph(version.name, version.version, judgement.reason, gates)
    before = handle.client.get_run(handle.run_id).data.tags.get(NOTE, "")
    tag(handle, tags | ({NOTE: re.sub(PARAGRAPH, lambda _: said, before)} if before else {}))


def paragraph(name: str, version: int, reason: str, gates: Mapping[str, str]) -> str:
    """What a run's description says of its version."""
    lines = [f"- {gate.replace('_', ' ')} {told}" for gate, told in gates.items()]
    return "\n".join([f"Version {version} of **{name}**. {reason[:1].upper()}{reason[1:]}", "", *lines])


def read_measurements(client: MlflowClient, version: Found, file: str = MEASURED) -> ModelMeasurements:
    """What was measured of a registered version, or of its base (``file``).

    Raises TrackingError when the version was not registered by this project, or its files are gone.
    """
    try:
        location = client.get_logged_model(model_of(version)).artifact_location
        repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
        with tempfile.TemporaryDirectory() as temporary:
            path = repository.download_artifacts(file, temporary)  # type: ignore[no-untyped-call]
            told = json.loads(Path(path).read_text())
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            f"Version {version.version} of {version.name} comes without its measurements ({error}).",
            "Versions are compared by what they measured when they were registered.",
            f"If it holds the alias {CHAMPION}, give that to a version that dpo registered.",
        ) from error
    name = f"version {version.version}" if file == MEASURED else "its base"
    return ModelMeasurements(**{**told, "name": name})


def read_case(handle: RunHandle, version: Found, record: ModelVersion) -> PromotionCase:
    """A registered version as a case; the base's measurements are missing from versions of older releases."""
    ours = read_measurements(handle.client, version)
    try:
        base = read_measurements(handle.client, version, BASE_MEASURED)
    except TrackingError:
        base = None
    return PromotionCase(record, ours, base)
