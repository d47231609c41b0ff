"""Versions of registered models by name, number or alias: found, listed, promoted by hand, and taken back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion as Found
from mlflow.exceptions import MlflowException
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dpo_core.config.recipe import PromoteSettings, TrackSettings
from dpo_core.config.redact import shown
from dpo_core.config.settings import read_recipe
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.records import ModelVersion, Promotion
from flows.registry import alias_lock, champion
from flows.registry.gates import FORCED, Gate, GateReport
from flows.registry.versions import CHAMPION, PREVIOUS
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import AFTER, RunHandle, answering

REFERENCE = re.compile(r"(?:models:/)?(?:(?P<name>[^/@]+)(?=[/@]))?(?:[/@])?(?P<which>[^/@]+)")
METRICS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy"}


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry of a store."""

    uri: str
    client: MlflowClient

    def names(self) -> list[str]:
        """The registered models; locks are none."""
        with answering(self.uri):
            found = self.client.search_registered_models(max_results=1000)
        return [model.name for model in found if not model.name.startswith(alias_lock.PREFIX)]


def open_registry(tracking_uri: str | None) -> Registry:
    """The registry of the runs' store.

    Raises TrackingError when it does not answer.
    """
    uri = mlflow_server.tracking_uri(TrackSettings(tracking_uri=tracking_uri))
    return Registry(uri, mlflow_run.connect(uri))


def named(registry: Registry, name: str | None) -> str:
    """The registered model that is meant; without a name, the only one.

    Raises RecipeError when there is none, or several to choose from.
    """
    names = registry.names()
    if name is None and len(names) == 1:
        return names[0]
    if name is None and names:
        raise RecipeError(
            f"There are {len(names)} registered models.",
            "One must be meant.",
            did_you_mean_or_list("", names, "Registered models"),
        ) from None
    if name is None or name not in names:
        found = f"There is no registered model {name!r}" if name else "There is no registered model"
        rule = "dpo run registers one; MLFLOW_TRACKING_URI or --tracking-uri says which store is meant."
        raise RecipeError(
            f"{found} in {shown(registry.uri)}.", rule, did_you_mean_or_list(name or "", names, "Registered models")
        )
    return name


def find(registry: Registry, reference: str, name: str | None = None) -> Found:
    """The version that is meant by ``3``, ``champion``, ``name/3``, ``name@champion``, with or without ``models:/``.

    Raises RecipeError when there is none.
    """
    told = REFERENCE.fullmatch(reference)
    if told is None:
        raise RecipeError(f"{reference!r} is no version.", "Write 3, name/3 or name@champion.", "See dpo models.")
    model = named(registry, told["name"] or name)
    which = told["which"]
    with answering(registry.uri):
        entry = registry.client.get_registered_model(model)
        wanted = str(entry.aliases.get(which, which))
        try:
            return registry.client.get_model_version(model, wanted)
        except MlflowException:
            versions = registry.client.search_model_versions(f"name = '{model}'", max_results=200)
    known = [*sorted(entry.aliases), *(str(version.version) for version in versions)]
    raise RecipeError(
        f"{model} has no version {which!r}.",
        "A version goes by its number or its alias.",
        did_you_mean_or_list(which, known, "Versions"),
    )


def handle_of(registry: Registry, version: Found) -> RunHandle:
    """The run of a version."""
    with answering(registry.uri):
        run = registry.client.get_run(version.run_id or "")
    return RunHandle(registry.uri, run.info.experiment_id, run.info.run_id, registry.client)


def record(handle: RunHandle, version: Found) -> ModelVersion:
    """A version as the stages know it."""
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        run_id=handle.run_id,
        experiment_id=handle.experiment_id,
        tracking_uri=shown(handle.uri),
        model_uri=f"models:/{version.name}/{version.version}",
    )


def rule_of(run: Run, words: Iterable[str]) -> PromoteSettings:
    """The gates that a run's recipe had, but for those given now.

    Raises RecipeError for a word that is no setting.
    """
    gates = ("min_prompt_strict_acc", "min_test_accuracy", "require_improvement")
    had = [f"{leaf}={run.data.params[leaf]}" for leaf in gates if leaf in run.data.params]
    return read_recipe(None, [*had, *words]).promote


def promote(registry: Registry, version: Found, words: Iterable[str], forced: str | None = None) -> Promotion:
    """Promote a version by hand, through the same gates; ``forced`` says why they are overruled.

    The person at the keyboard is the approval. Raises TrackingError when MLflow does not do its part.
    """
    handle = handle_of(registry, version)
    with answering(registry.uri):
        rule = rule_of(registry.client.get_run(handle.run_id), words)
        rule = rule.model_copy(update={"auto_promote": True})
        if forced is not None:
            return force(handle, version, rule, forced)
        return champion.promote(handle, champion.read_case(handle, version, record(handle, version)), rule)


def force(handle: RunHandle, version: Found, rule: PromoteSettings, why: str) -> Promotion:
    """Promote whatever the gates say; what they say is recorded beside the reason."""
    client, ours = handle.client, record(handle, version)
    with alias_lock.locked(client, version.name) as held:
        before = champion.by_alias(client, version.name, CHAMPION)
        try:
            case = champion.read_case(handle, version, ours)
            judgement = champion.weigh(client, case, before, rule)
        except TrackingError as error:
            judgement = GateReport(False, f"it could not be compared: {error.found}", ())
        told = f"version {version.version} is promoted by hand ({why.rstrip('.')}), whatever the gates say:"
        gates = (*judgement.gates, Gate(FORCED, True, why))
        judgement = GateReport(True, f"{told} {judgement.reason}", gates)
        held.check()
        champion.note(handle, ours, judgement)
        if champion.number(before) != ours.version:
            champion.crown(client, version.name, ours.version, champion.number(before))
    return Promotion(
        promoted=True, reason=judgement.reason, name=ours.name, version=ours.version, champion_version=ours.version
    )


def rollback(registry: Registry, name: str, why: str | None) -> str:
    """Give the champion's alias back to ``previous``, which then holds the one that it was taken from.

    Returns a sentence on it. Raises RecipeError when there is nothing to go back to.
    """
    client = registry.client
    with answering(registry.uri), alias_lock.locked(client, name) as held:
        now, before = (champion.by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
        if now is None or before is None or now.version == before.version:
            found = f"its champion is version {now.version}" if now else "it has no champion"
            raise RecipeError(
                f"{name} cannot be rolled back: {found}, and there is no other version with the alias {PREVIOUS}.",
                "A promotion leaves the champion before it as previous.",
                "dpo promote VERSION chooses another version.",
            )
        because = f" ({why.rstrip('.')})" if why else ""
        told = f"version {before.version} is the champion again, rolled back from version {now.version}{because}."
        held.check()
        client.set_model_version_tag(name, str(before.version), champion.REASON, told)
        client.set_model_version_tag(name, str(now.version), champion.PROMOTED, "false")
        champion.crown(client, name, int(before.version), int(now.version))
    return told


def table(registry: Registry, name: str) -> Group:
    """All versions of a model, the newest first, and under them why each was promoted or not."""
    made = Table(title=name, title_justify="left", row_styles=["", "dim"], box=SIMPLE_HEAD)
    for column in ("version", "aliases", "run", *METRICS.values(), "promoted"):
        made.add_column(column, overflow="fold", justify="right" if column in METRICS.values() else "left")
    with answering(registry.uri):
        query = f"name = '{name}'"
        found = list(registry.client.search_model_versions(query, max_results=200, order_by=["version_number DESC"]))
        aliases = registry.client.get_registered_model(name).aliases
        runs = runs_of(registry.client, found)
    made.caption = None if found else "no versions: dpo run registers them"
    for version in found:
        run = runs.get(version.run_id or "")
        held = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
        numbers = [cell(run, metric) for metric in METRICS]
        label = f"{run.info.run_name} {run.info.run_id[:8]}" if run else "gone"
        promoted = {"true": "yes", "false": "no"}.get(version.tags.get(champion.PROMOTED, ""), "")
        made.add_row(str(version.version), ", ".join(held), label, *numbers, promoted)
    reasons = [Text(f"{version.version}: {version.tags.get(champion.REASON, 'no decision yet.')}") for version in found]
    return Group(made, *reasons)


def runs_of(client: MlflowClient, versions: Iterable[Found]) -> dict[str, Run]:
    """The runs of versions, by id; one that was purged is not among them."""
    runs: dict[str, Run] = {}
    for identity in {version.run_id for version in versions if version.run_id}:
        try:
            runs[identity] = client.get_run(identity)
        except MlflowException:
            continue
    return runs


def cell(run: Run | None, metric: str) -> str:
    """A final number of a run."""
    value = run.data.metrics.get(f"{AFTER}/{metric}") if run else None
    return "" if value is None else f"{value:.3f}"
