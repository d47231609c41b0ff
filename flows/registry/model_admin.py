"""Administration of registered models: find and list versions, promote one by hand, roll the champion back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.exceptions import MlflowException
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dpo_core.config.recipe import PromoteSettings, TrackSettings
from dpo_core.config.redact import hide_password
from dpo_core.config.settings import read_recipe
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.records import Promotion
from flows.registry import alias_lock, champion
from flows.registry.gates import FORCED, Gate, GateReport
from flows.registry.versions import CHAMPION, PREVIOUS, version_record
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import AFTER, RunHandle, as_tracking_error

REFERENCE = re.compile(r"(?:models:/)?(?:(?P<name>[^/@]+)(?=[/@]))?(?:[/@])?(?P<version>[^/@]+)")
METRICS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy"}


@dataclass(frozen=True, slots=True)
class Registry:
    """The model registry of an MLflow store."""

    uri: str
    client: MlflowClient

    def names(self) -> list[str]:
        """Return the names of the registered models, without the locks among them."""
        with as_tracking_error(self.uri):
            models = self.client.search_registered_models(max_results=1000)
        return [model.name for model in models if not model.name.startswith(alias_lock.LOCK_PREFIX)]


def open_registry(tracking_uri: str | None) -> Registry:
    """Return the registry of the store that the runs are tracked in.

    Raises TrackingError when it does not answer.
    """
    uri = mlflow_server.tracking_uri(TrackSettings(tracking_uri=tracking_uri))
    return Registry(uri, mlflow_run.connect(uri))


def resolve_model_name(registry: Registry, name: str | None) -> str:
    """Check the name of a registered model; without a name, return the only one.

    Raises RecipeError when there is no such model, or several without a name.
    """
    names = registry.names()
    if name is None and len(names) == 1:
        return names[0]
    if name is None and names:
        raise RecipeError(
            f"There are {len(names)} registered models.",
            "Without a name there must be exactly one.",
            did_you_mean_or_list("", names, "Registered models"),
        ) from None
    if name is None or name not in names:
        missing = f"There is no registered model {name!r}" if name else "There is no registered model"
        rule = "dpo run registers one; MLFLOW_TRACKING_URI or --tracking-uri chooses the store."
        raise RecipeError(
            f"{missing} in {hide_password(registry.uri)}.",
            rule,
            did_you_mean_or_list(name or "", names, "Registered models"),
        )
    return name


def find_version(registry: Registry, reference: str, name: str | None = None) -> RegistryVersion:
    """Return the version given as ``3``, ``champion``, ``name/3`` or ``name@champion``, with or without ``models:/``.

    Raises RecipeError when there is no such version.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise RecipeError(f"{reference!r} is no version.", "Write 3, name/3 or name@champion.", "See dpo models.")
    model = resolve_model_name(registry, match["name"] or name)
    version = match["version"]
    with as_tracking_error(registry.uri):
        entry = registry.client.get_registered_model(model)
        number = str(entry.aliases.get(version, version))
        try:
            return registry.client.get_model_version(model, number)
        except MlflowException:
            versions = registry.client.search_model_versions(f"name = '{model}'", max_results=200)
    choices = [*sorted(entry.aliases), *(str(other.version) for other in versions)]
    raise RecipeError(
        f"{model} has no version {version!r}.",
        "A version is given by its number or its alias.",
        did_you_mean_or_list(version, choices, "Versions"),
    )


def run_handle(registry: Registry, version: RegistryVersion) -> RunHandle:
    """Return the run of a version."""
    with as_tracking_error(registry.uri):
        run = registry.client.get_run(version.run_id or "")
    return RunHandle(registry.uri, run.info.experiment_id, run.info.run_id, registry.client)


def promotion_settings(run: Run, overrides: Iterable[str]) -> PromoteSettings:
    """Return the promotion settings of a run's recipe, overridden by ``key=value`` arguments.

    Raises RecipeError for an unknown setting.
    """
    gates = ("min_prompt_strict_acc", "min_test_accuracy", "require_improvement")
    recorded = [f"{leaf}={run.data.params[leaf]}" for leaf in gates if leaf in run.data.params]
    return read_recipe(None, [*recorded, *overrides]).promote


def promote(
    registry: Registry, version: RegistryVersion, overrides: Iterable[str], forced: str | None = None
) -> Promotion:
    """Promote a version by hand through the same gates, without approval; ``forced`` is the reason for overruling them.

    Raises TrackingError when MLflow fails.
    """
    handle = run_handle(registry, version)
    with as_tracking_error(registry.uri):
        settings = promotion_settings(registry.client.get_run(handle.run_id), overrides)
        settings = settings.model_copy(update={"auto_promote": True})
        if forced is not None:
            return force_promotion(handle, version, settings, forced)
        return champion.promote(handle, champion.read_measured_version(handle, version), settings)


def force_promotion(handle: RunHandle, version: RegistryVersion, settings: PromoteSettings, reason: str) -> Promotion:
    """Promote a version whatever the gates say; their verdicts are recorded beside the reason."""
    client, record = handle.client, version_record(handle, version)
    with alias_lock.locked(client, version.name) as lock:
        current = champion.version_by_alias(client, version.name, CHAMPION)
        try:
            measured = champion.read_measured_version(handle, version)
            report = champion.apply_gates(client, measured, current, settings)
        except TrackingError as error:
            report = GateReport(False, f"it could not be compared: {error.found}", ())
        forced = f"version {version.version} is promoted by hand ({reason.rstrip('.')}), whatever the gates say:"
        report = GateReport(True, f"{forced} {report.reason}", (*report.gates, Gate(FORCED, True, reason)))
        lock.check()
        champion.write_report(handle, record, report)
        current_number = champion.version_number(current)
        if current_number != record.version:
            champion.set_champion(client, version.name, record.version, current_number)
    return Promotion(
        promoted=True, reason=report.reason, name=record.name, version=record.version, champion_version=record.version
    )


def rollback(registry: Registry, name: str, reason: str | None) -> str:
    """Swap the aliases ``champion`` and ``previous``, and return a sentence that says so.

    Raises RecipeError when no other version holds ``previous``, TrackingError when MLflow fails.
    """
    client = registry.client
    with as_tracking_error(registry.uri), alias_lock.locked(client, name) as lock:
        current, previous = (champion.version_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
        if current is None or previous is None or current.version == previous.version:
            state = f"its champion is version {current.version}" if current else "it has no champion"
            raise RecipeError(
                f"{name} cannot be rolled back: {state}, and there is no other version with the alias {PREVIOUS}.",
                "A promotion gives the former champion the alias previous.",
                "dpo promote VERSION chooses another version.",
            )
        clause = f" ({reason.rstrip('.')})" if reason else ""
        sentence = (
            f"version {previous.version} is the champion again, rolled back from version {current.version}{clause}."
        )
        lock.check()
        client.set_model_version_tag(name, str(previous.version), champion.REASON_TAG, sentence)
        client.set_model_version_tag(name, str(current.version), champion.PROMOTED_TAG, "false")
        champion.set_champion(client, name, int(previous.version), int(current.version))
    return sentence


def versions_table(registry: Registry, name: str) -> Group:
    """Return a table of a model's versions, the newest first, followed by the reason of each decision."""
    table = Table(title=name, title_justify="left", row_styles=["", "dim"], box=SIMPLE_HEAD)
    for column in ("version", "aliases", "run", *METRICS.values(), "promoted"):
        table.add_column(column, overflow="fold", justify="right" if column in METRICS.values() else "left")
    with as_tracking_error(registry.uri):
        query = f"name = '{name}'"
        versions = list(registry.client.search_model_versions(query, max_results=200, order_by=["version_number DESC"]))
        aliases = registry.client.get_registered_model(name).aliases
        runs = runs_by_id(registry.client, versions)
    table.caption = None if versions else "no versions: dpo run registers them"
    for version in versions:
        run = runs.get(version.run_id or "")
        own_aliases = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
        metrics = [metric_cell(run, metric) for metric in METRICS]
        label = f"{run.info.run_name} {run.info.run_id[:8]}" if run else "gone"
        promoted = {"true": "yes", "false": "no"}.get(version.tags.get(champion.PROMOTED_TAG, ""), "")
        table.add_row(str(version.version), ", ".join(own_aliases), label, *metrics, promoted)
    no_reason = "no decision yet."
    reasons = [Text(f"{version.version}: {version.tags.get(champion.REASON_TAG, no_reason)}") for version in versions]
    return Group(table, *reasons)


def runs_by_id(client: MlflowClient, versions: Iterable[RegistryVersion]) -> dict[str, Run]:
    """Return the runs of versions by id; purged runs are missing."""
    runs: dict[str, Run] = {}
    for run_id in {version.run_id for version in versions if version.run_id}:
        try:
            runs[run_id] = client.get_run(run_id)
        except MlflowException:
            continue
    return runs


def metric_cell(run: Run | None, metric: str) -> str:
    """Format a final metric of a run, empty when it is missing."""
    value = run.data.metrics.get(f"{AFTER}/{metric}") if run else None
    return "" if value is None else f"{value:.3f}"
