"""Champion of a registered model: promotion through the gates, alias moves, and their reasons in tags."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from dpo_core.config.recipe import PromoteSettings
from dpo_core.errors import TrackingError
from dpo_core.records import EvalResult, ModelVersion, Promotion
from flows.registry.alias_lock import locked
from flows.registry.gates import GATE_TAG, PASSED, Gate, GateReport, gate_report
from flows.registry.logged_model import BASE_MEASUREMENTS_FILE, MEASUREMENTS_FILE, measurements
from flows.registry.promotion_rule import ModelMeasurements
from flows.registry.versions import CHAMPION, PREVIOUS, logged_model_id, version_record
from flows.tracking.mlflow_run import RunHandle, as_tracking_error, set_tags

REASON_TAG, PROMOTED_TAG = "dpo.promotion", "dpo.promoted"

DESCRIPTION_TAG, COMMAND_HEADING = "mlflow.note.content", "Repeat it with"
PARAGRAPH = re.compile(rf"^Version \d+ of \*\*.*?(?=\n\n{COMMAND_HEADING})", re.MULTILINE | re.DOTALL)

RequestApproval = Callable[[GateReport], Gate]


@dataclass(frozen=True, slots=True)
class MeasuredVersion:
    """A candidate for promotion: a version with its measurements and, if they were recorded, its base's."""

    version: ModelVersion
    measured: ModelMeasurements
    base: ModelMeasurements | None


def measured_version(version: ModelVersion, before: EvalResult, after: EvalResult) -> MeasuredVersion:
    """Combine a version with the evaluations of its base (``before``) and of itself (``after``)."""
    return MeasuredVersion(version, measurements(after, f"version {version.version}"), measurements(before, "its base"))


def promote(
    handle: RunHandle, candidate: MeasuredVersion, settings: PromoteSettings, request: RequestApproval | None = None
) -> Promotion:
    """Apply the gates to a candidate, and move the champion's alias if all of them pass.

    ``request``, if given, asks a person for approval after all other gates. Reasons become tags of the version and of
    the run. The result's ``champion_version`` holds the alias afterwards. The champion itself stays the champion. Two
    candidates at the same time are decided one after the other (:mod:`flows.registry.alias_lock`), the second against
    the first.

    Raises TrackingError when MLflow fails; the alias has not moved then.
    """
    client, name, version = handle.client, candidate.version.name, candidate.version.version
    with as_tracking_error(handle.uri):
        # A person may take hours to respond, so the request runs before the lock is taken.
        reviewed = version_by_alias(client, name, CHAMPION)
        approval = (
            request_approval(client, candidate, settings, request) if version_number(reviewed) != version else None
        )
        with locked(client, name) as lock:
            champion = version_by_alias(client, name, CHAMPION)
            champion_version = version_number(champion)
            if champion and champion_version == version:
                return promotion_record(candidate, stored_report(champion), champion_version)
            report = apply_gates(client, candidate, champion, settings)
            if approval:
                moved_to = None if version_number(reviewed) == champion_version else champion_version
                report = with_approval(report, approval, moved_to)
            lock.check()
            write_report(handle, candidate.version, report)
            if report.promoted:
                set_champion(client, name, version, champion_version)
            return promotion_record(candidate, report, version if report.promoted else champion_version)


def apply_gates(
    client: MlflowClient, candidate: MeasuredVersion, champion: RegistryVersion | None, settings: PromoteSettings
) -> GateReport:
    """Return the gates' report on a candidate against a champion; without ``auto_promote`` it never promotes."""
    rival = read_measurements(client, champion) if champion else None
    report = gate_report(candidate.measured, rival, candidate.base, settings)
    if report.promoted and not settings.auto_promote:
        reason = f"The alias is left alone (auto_promote=false), although {hypothetical(report.reason)}"
        return replace(report, promoted=False, reason=reason)
    return report


def request_approval(
    client: MlflowClient, candidate: MeasuredVersion, settings: PromoteSettings, request: RequestApproval | None
) -> Gate | None:
    """Request a person's approval of a candidate that passes all other gates; None when no request was made."""
    if request is None:
        return None
    report = apply_gates(client, candidate, version_by_alias(client, candidate.version.name, CHAMPION), settings)
    return request(report) if report.promoted else None


def with_approval(report: GateReport, approval: Gate, moved_to: int | None) -> GateReport:
    """Add the approval gate to a report.

    An approval is void when the champion has since become version ``moved_to``: the person compared with another one.
    """
    if approval.passed and moved_to is not None:
        reason = f"the champion became version {moved_to} while approval was pending, so the approval does not count."
        approval = replace(approval, passed=False, reason=reason)
    gates = (*report.gates, approval)
    if not report.promoted:
        return replace(report, gates=gates)
    if approval.passed:
        return replace(report, reason=f"{report.reason.rstrip('.')}; {approval.reason}", gates=gates)
    reason = f"The alias is left alone, {approval.reason.rstrip('.')}, although {hypothetical(report.reason)}"
    return GateReport(False, reason, gates)


def hypothetical(reason: str) -> str:
    """Rephrase the reason of a promotion that another gate prevents."""
    return reason.replace(" is promoted ", " would be promoted ", 1)


def stored_report(champion: RegistryVersion) -> GateReport:
    """Return the report that was written to the tags of a version when it became the champion."""
    reason = champion.tags.get(REASON_TAG, f"version {champion.version} holds the alias {CHAMPION} already.")
    gates = [
        Gate(tag.removeprefix(GATE_TAG), text.startswith(PASSED), text.partition(": ")[2])
        for tag, text in champion.tags.items()
        if tag.startswith(GATE_TAG)
    ]
    return GateReport(True, reason, tuple(gates))


def version_number(version: RegistryVersion | None) -> int | None:
    """Return a version's number, None for no version."""
    return int(version.version) if version else None


def promotion_record(candidate: MeasuredVersion, report: GateReport, champion_version: int | None) -> Promotion:
    """Return the pipeline's record of a decision."""
    return Promotion(
        promoted=report.promoted,
        reason=report.reason,
        name=candidate.version.name,
        version=candidate.version.version,
        champion_version=champion_version,
        gates={gate.name: str(gate) for gate in report.gates},
    )


def version_by_alias(client: MlflowClient, name: str, alias: str) -> RegistryVersion | None:
    """Return the version that holds an alias, or None."""
    version = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, version) if version else None


def set_champion(client: MlflowClient, name: str, version: int, previous: int | None) -> None:
    """Move the alias ``champion`` to a version, and ``previous`` to the former champion, for a rollback."""
    # In this order: a process killed in between leaves the champion where it was.
    if previous is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(previous))
    client.set_registered_model_alias(name, CHAMPION, str(version))


def write_report(handle: RunHandle, version: ModelVersion, report: GateReport) -> None:
    """Write a report to the tags of the version and its run; it replaces the earlier one in the run's description."""
    tags = {REASON_TAG: report.reason, PROMOTED_TAG: str(report.promoted).lower(), **report.tags()}
    for key, value in tags.items():
        handle.client.set_model_version_tag(version.name, str(version.version), key, value)
    gates = {gate.name: str(gate) for gate in report.gates}
    paragraph = report_paragraph(version.name, version.version, report.reason, gates)
    description = handle.client.get_run(handle.run_id).data.tags.get(DESCRIPTION_TAG, "")
    if description:
        # A function as the replacement: backslashes in a person's reason are no group references.
        tags[DESCRIPTION_TAG] = re.sub(PARAGRAPH, lambda _: paragraph, description)
    set_tags(handle, tags)


def report_paragraph(name: str, version: int, reason: str, gates: Mapping[str, str]) -> str:
    """Return the paragraph of a run's description about its version, in Markdown."""
    lines = [f"- {gate.replace('_', ' ')} {verdict}" for gate, verdict in gates.items()]
    return "\n".join([f"Version {version} of **{name}**. {reason[:1].upper()}{reason[1:]}", "", *lines])


def read_measurements(
    client: MlflowClient, version: RegistryVersion, file: str = MEASUREMENTS_FILE
) -> ModelMeasurements:
    """Read the measurements of a registered version, or of its base (``file``).

    Raises TrackingError when the version was not registered by this project, or its files are gone.
    """
    try:
        location = client.get_logged_model(logged_model_id(version)).artifact_location
        repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
        with tempfile.TemporaryDirectory() as temporary:
            path = repository.download_artifacts(file, temporary)  # type: ignore[no-untyped-call]
            fields = json.loads(Path(path).read_text())
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            f"Version {version.version} of {version.name} comes without its measurements ({error}).",
            "Versions are compared by the measurements stored when they were registered.",
            f"If it holds the alias {CHAMPION}, move that alias to a version that dpo registered.",
        ) from error
    name = f"version {version.version}" if file == MEASUREMENTS_FILE else "its base"
    return ModelMeasurements(**{**fields, "name": name})


def read_measured_version(handle: RunHandle, version: RegistryVersion) -> MeasuredVersion:
    """Read a registered version as a candidate; versions of older releases lack the base's measurements.

    Raises TrackingError when the version's own measurements cannot be read.
    """
    measured = read_measurements(handle.client, version)
    try:
        base = read_measurements(handle.client, version, BASE_MEASUREMENTS_FILE)
    except TrackingError:
        base = None
    return MeasuredVersion(version_record(handle, version), measured, base)
