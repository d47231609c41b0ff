"""Table of an experiment's runs with differing settings and results; lookup of runs by id, name or directory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dpo_core.config.recipe import LEAVES, TrackSettings
from dpo_core.config.redact import hide_password
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.stages.train import NOT_IN_KEY, SECTIONS_NOT_IN_KEY
from dpo_core.train.checkpoint.run_dir import read_config
from flows.registry.model_admin import Registry
from flows.registry.versions import CHAMPION
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import AFTER, as_tracking_error

RESULTS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy", "test/nll_chosen": "NLL chosen"}
MAX_SUGGESTION_RUNS, MAX_SETTING_COLUMNS, ID_LENGTH, MIN_NAME_WIDTH = 500, 6, 8, 16


@dataclass(frozen=True, slots=True)
class Experiment:
    """An MLflow experiment and a client of its store at ``uri``."""

    uri: str
    client: MlflowClient
    id: str
    name: str

    def newest(self, limit: int) -> list[Run]:
        """The newest ``limit`` runs, each with the last value of its metrics."""
        runs: list[Run] = []
        token = None
        with as_tracking_error(self.uri):
            while len(runs) < limit:
                page = self.client.search_runs(
                    [self.id], max_results=min(limit - len(runs), 1000), page_token=token,
                    order_by=["attributes.start_time DESC"],
                )  # fmt: skip
                runs += page
                token = page.token
                if not token:
                    break
        return runs

    def champions(self) -> dict[str, str]:
        """Champions of all registered models as name/version, by the id of their run."""
        versions = {}
        registry = Registry(self.uri, self.client)
        for name in registry.names():
            with as_tracking_error(self.uri):
                number = self.client.get_registered_model(name).aliases.get(CHAMPION)
                version = self.client.get_model_version(name, str(number)) if number else None
            if version and version.run_id:
                versions[version.run_id] = f"{name}/{version.version}"
        return versions


def open_experiment(track: TrackSettings) -> Experiment:
    """The existing experiment that the settings name.

    Raises TrackingError when the store does not answer, or the experiment was deleted; RecipeError when there is none.
    """
    uri = mlflow_server.tracking_uri(track)
    client = mlflow_run.connect(uri)
    with as_tracking_error(uri):
        found = client.get_experiment_by_name(track.experiment_name)
        names = [] if found else [entry.name for entry in client.search_experiments(max_results=1000)]
    if found is None:
        raise RecipeError(
            f"There is no experiment {track.experiment_name!r} in {hide_password(uri)}.",
            "experiment_name sets the experiment; MLFLOW_TRACKING_URI or tracking_uri sets the store.",
            did_you_mean_or_list(track.experiment_name, names, "Experiments"),
        )
    if found.lifecycle_stage == "deleted":
        raise mlflow_run.deleted_experiment_error(track.experiment_name)
    return Experiment(uri, client, str(found.experiment_id), track.experiment_name)


def find_run(experiment: Experiment, text: str) -> Run:
    """The run with this directory, id, name, or part of an id or a name.

    Raises RecipeError when no run matches or several do; TrackingError when the run of a directory is not in MLflow.
    """
    if (config := read_config(Path(text).expanduser())) is not None:
        return find_run_of_directory(experiment, Path(text), str(config["origin"]))
    if not re.fullmatch(r"[^%]+", text):
        raise RecipeError(
            f"{text!r} is not a run.",
            "A run is given by its id, its name or its log_path.",
            "To list the runs, run dpo runs.",
        )
    found = search_runs(experiment, text)
    if len(found) == 1:
        return found[0]
    if found:
        matches = ", ".join(f"{run.info.run_name} ({run.info.run_id[:ID_LENGTH]})" for run in found[:5])
        raise RecipeError(
            f"{len(found)} runs match {text!r}: {matches}.", "Exactly one must match.", "Give the run's id."
        )
    names = [str(run.info.run_name) for run in experiment.newest(MAX_SUGGESTION_RUNS)]
    remedy = did_you_mean_or_list(text, names, "Runs")
    raise RecipeError(f"No run in experiment {experiment.name!r} matches {text!r}.", "See dpo runs.", remedy)


def find_run_of_directory(experiment: Experiment, path: Path, origin: str) -> Run:
    """The MLflow run of a run's directory ``path``, by its tag ``origin``.

    Raises TrackingError when MLflow does not have it.
    """
    with as_tracking_error(experiment.uri):
        found = mlflow_run.find_run(experiment.client, experiment.id, origin)
    if found is None:
        raise TrackingError(f"{path} is not in experiment {experiment.name!r}.", "", f"To add it, run dpo sync {path}")
    assert isinstance(found, Run)
    return found


def search_runs(experiment: Experiment, text: str) -> list[Run]:
    """Runs whose id or name is ``text``; else those that begin with it; else those whose name contains it."""
    safe = text.replace("'", "_")  # in LIKE, _ matches any character
    patterns = [
        f"attributes.run_id = '{safe}'",
        f"attributes.run_name = '{safe}'",
        f"attributes.run_name LIKE '{safe}%'",
    ]
    if re.fullmatch(r"[0-9a-f]{4,32}", text):
        patterns.append(f"attributes.run_id LIKE '{safe}%'")
    patterns.append(f"attributes.run_name LIKE '%{safe}%'")
    for pattern in patterns:
        with as_tracking_error(experiment.uri):
            found = experiment.client.search_runs([experiment.id], pattern, ViewType.ACTIVE_ONLY, max_results=50)
        if found:
            return list(found)
    return []


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """The names of settings that change what a run computes and differ among the runs that have them."""
    leaves = [leaf for leaf, section in LEAVES.items() if section not in SECTIONS_NOT_IN_KEY and leaf not in NOT_IN_KEY]
    values_by_leaf = {leaf: {run.data.params[leaf] for run in runs if leaf in run.data.params} for leaf in leaves}
    return [leaf for leaf, values in values_by_leaf.items() if len(values) > 1]


def runs_table(experiment: Experiment, limit: int) -> Table:
    """A table of the newest ``limit`` runs: status, differing settings, results, and champions.

    Raises RecipeError when the experiment has no runs.
    """
    runs = experiment.newest(limit)
    if not runs:
        raise RecipeError(f"Experiment {experiment.name!r} has no runs.", "", "To create one, run dpo run.")
    champions, leaves = experiment.champions(), differing_settings(runs)
    results = {name: words for name, words in RESULTS.items() if any(has_result(run, name) for run in runs)}
    table = Table(
        title=experiment.name,
        title_justify="left",
        caption=table_caption(leaves),
        row_styles=["", "dim"],
        box=SIMPLE_HEAD,
    )
    for column in ("id", "run", "status", "started"):
        table.add_column(
            column, overflow="fold", no_wrap=column == "id", min_width=MIN_NAME_WIDTH if column == "run" else None
        )
    for column in (*leaves[:MAX_SETTING_COLUMNS], *results.values(), "champion"):
        table.add_column(column, overflow="fold", justify="right")
    for run in runs:
        settings = [run.data.params.get(leaf, "") for leaf in leaves[:MAX_SETTING_COLUMNS]]
        champion = champions.get(run.info.run_id, "")
        cells = (
            *run_cells(run),
            *settings,
            *(format_result(run, name) for name in results),
            f"★ {champion}" if champion else "",
        )
        table.add_row(*(Text(cell) for cell in cells))  # Text: a name in brackets must not be read as markup
    return table


def table_caption(leaves: Sequence[str]) -> str | None:
    """A caption that names the differing settings without a column, None if there are none."""
    hidden = leaves[MAX_SETTING_COLUMNS:]
    return f"The runs also differ in {', '.join(hidden)}." if hidden else None


def run_cells(run: Run) -> tuple[str, str, str, str]:
    """Id (shortened), name, status and local start time of a run."""
    started = datetime.fromtimestamp(run.info.start_time / 1000).strftime("%m-%d %H:%M")
    return run.info.run_id[:ID_LENGTH], str(run.info.run_name), run.info.status.lower(), started


def has_result(run: Run, name: str) -> bool:
    """Whether a run has the final metric ``name``."""
    return f"{AFTER}/{name}" in run.data.metrics


def format_result(run: Run, name: str) -> str:
    """The final metric ``name`` with three decimals; empty if the run does not have it."""
    return f"{run.data.metrics[f'{AFTER}/{name}']:.3f}" if has_result(run, name) else ""
