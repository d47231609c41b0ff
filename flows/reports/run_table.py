"""Runs of an experiment: found by whatever names them, and as a table of what differs and what came of it."""

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
from dpo_core.config.redact import shown
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.stages.train import NOT_IN_KEY
from dpo_core.train.checkpoint.run_dir import read_config
from flows.registry.model_admin import Registry
from flows.registry.versions import CHAMPION
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import AFTER, as_tracking_error

RESULTS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy", "test/nll_chosen": "NLL chosen"}
ASIDE = ("track", "promote", "sweep")  # sections that do not say what is computed
NEAREST_OF, MOST_COLUMNS, ID, LEAST_NAME = 500, 6, 8, 16


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment of a store."""

    uri: str
    client: MlflowClient
    id: str
    name: str

    def newest(self, limit: int) -> list[Run]:
        """The newest runs, each metric's last value with them and no history."""
        found: list[Run] = []
        token = None
        with as_tracking_error(self.uri):
            while len(found) < limit:
                page = self.client.search_runs(
                    [self.id], max_results=min(limit - len(found), 1000), page_token=token,
                    order_by=["attributes.start_time DESC"],
                )  # fmt: skip
                found += page
                token = page.token
                if not token:
                    break
        return found

    def champions(self) -> dict[str, str]:
        """Runs whose version is a champion: run id to the version's words."""
        marks = {}
        registry = Registry(self.uri, self.client)
        for name in registry.names():
            with as_tracking_error(self.uri):
                held = self.client.get_registered_model(name).aliases.get(CHAMPION)
                version = self.client.get_model_version(name, str(held)) if held else None
            if version and version.run_id:
                marks[version.run_id] = f"{name}/{version.version}"
        return marks


def open_experiment(track: TrackSettings) -> Experiment:
    """The experiment of the settings, which must exist.

    Raises TrackingError when the store does not answer, or the experiment was deleted; RecipeError when there is none.
    """
    uri = mlflow_server.tracking_uri(track)
    client = mlflow_run.connect(uri)
    with as_tracking_error(uri):
        found = client.get_experiment_by_name(track.experiment_name)
        names = [] if found else [one.name for one in client.search_experiments(max_results=1000)]
    if found is None:
        raise RecipeError(
            f"There is no experiment {track.experiment_name!r} in {shown(uri)}.",
            "experiment_name says which is meant, MLFLOW_TRACKING_URI or tracking_uri where.",
            did_you_mean_or_list(track.experiment_name, names, "Experiments"),
        )
    if found.lifecycle_stage == "deleted":
        raise mlflow_run.deleted_experiment_error(track.experiment_name)
    return Experiment(uri, client, str(found.experiment_id), track.experiment_name)


def find(experiment: Experiment, text: str) -> Run:
    """The run that is meant by its directory, its id, or a beginning or part of either's name.

    Raises RecipeError when there is none or there are several.
    """
    if (told := read_config(Path(text).expanduser())) is not None:
        return from_directory(experiment, Path(text), str(told["origin"]))
    if not re.fullmatch(r"[^%]+", text):
        raise RecipeError(f"{text!r} is no run.", "A run goes by its id, its name or its log_path.", "See dpo runs.")
    found = matching(experiment, text)
    if len(found) == 1:
        return found[0]
    if found:
        told_of = ", ".join(f"{run.info.run_name} ({run.info.run_id[:ID]})" for run in found[:5])
        raise RecipeError(f"{len(found)} runs go by {text!r}: {told_of}.", "One must be meant.", "Give the run's id.")
    names = [str(run.info.run_name) for run in experiment.newest(NEAREST_OF)]
    remedy = did_you_mean_or_list(text, names, "Runs")
    raise RecipeError(f"No run in experiment {experiment.name!r} goes by {text!r}.", "See dpo runs.", remedy)


def from_directory(experiment: Experiment, path: Path, origin: str) -> Run:
    """The run of a run's directory.

    Raises TrackingError when MLflow does not hold it.
    """
    with as_tracking_error(experiment.uri):
        found = mlflow_run.find_run(experiment.client, experiment.id, origin)
    if found is None:
        raise TrackingError(f"{path} is not in experiment {experiment.name!r}.", "", f"Bring it there: dpo sync {path}")
    assert isinstance(found, Run)
    return found


def matching(experiment: Experiment, text: str) -> list[Run]:
    """Runs that go by a text: exactly, else by its beginning, else by a part of the name."""
    safe = text.replace("'", "_")  # LIKE's one unknown character
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


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, of those that say what is computed; a run that has none of it is no reason."""
    leaves = [leaf for leaf, section in LEAVES.items() if section not in ASIDE and leaf not in NOT_IN_KEY]
    told = {leaf: {run.data.params[leaf] for run in runs if leaf in run.data.params} for leaf in leaves}
    return [leaf for leaf, values in told.items() if len(values) > 1]


def table(experiment: Experiment, limit: int) -> Table:
    """The newest runs: name, status, what differs among them, results, and which is a champion.

    Raises RecipeError when there is none.
    """
    runs = experiment.newest(limit)
    if not runs:
        raise RecipeError(f"Experiment {experiment.name!r} has no runs.", "", "dpo run makes one.")
    champions, leaves = experiment.champions(), differing(runs)
    results = {name: words for name, words in RESULTS.items() if any(has(run, name) for run in runs)}
    made = Table(
        title=experiment.name, title_justify="left", caption=left_out(leaves), row_styles=["", "dim"], box=SIMPLE_HEAD
    )
    for column in ("id", "run", "status", "started"):
        made.add_column(
            column, overflow="fold", no_wrap=column == "id", min_width=LEAST_NAME if column == "run" else None
        )
    for column in (*leaves[:MOST_COLUMNS], *results.values(), "champion"):
        made.add_column(column, overflow="fold", justify="right")
    for run in runs:
        settings = [run.data.params.get(leaf, "") for leaf in leaves[:MOST_COLUMNS]]
        mark = champions.get(run.info.run_id, "")
        words = (*about(run), *settings, *(result(run, name) for name in results), f"★ {mark}" if mark else "")
        made.add_row(*(Text(word) for word in words))  # a name in brackets is no markup
    return made


def left_out(leaves: Sequence[str]) -> str | None:
    """Which differing settings have no column."""
    hidden = leaves[MOST_COLUMNS:]
    return f"They also differ in {', '.join(hidden)}." if hidden else None


def about(run: Run) -> tuple[str, str, str, str]:
    """Id, name, status and start of a run."""
    started = datetime.fromtimestamp(run.info.start_time / 1000).strftime("%m-%d %H:%M")
    return run.info.run_id[:ID], str(run.info.run_name), run.info.status.lower(), started


def has(run: Run, name: str) -> bool:
    """Whether a run has this final number."""
    return f"{AFTER}/{name}" in run.data.metrics


def result(run: Run, name: str) -> str:
    """A final number."""
    return f"{run.data.metrics[f'{AFTER}/{name}']:.3f}" if has(run, name) else ""
