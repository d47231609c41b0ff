"""Runs against each other: recipes, results, paired tests on the same prompts, and curves."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from dpo_core.errors import RecipeError
from dpo_core.evaluate.paired_tests import mcnemar
from dpo_core.train.checkpoint import journal
from flows.registry.promotion_rule import (
    ModelMeasurements,
    accuracy_beyond_noise,
    compare_prompt_strict_acc,
    compare_test_accuracy,
)
from flows.reports import compare_plot, comparison_page
from flows.reports.run_table import ID, RESULTS, Experiment, differing, find
from flows.tracking.mlflow_run import AFTER, as_tracking_error

OUTCOMES = "evaluation/after/outcomes.jsonl"
MORE = {
    "inst_strict_acc": "instructions followed (strict)",
    "test/margin": "held-out margin",
    "ended_share": "answers that end by themselves",
    "loop_share": "answers that loop",
}
PAGE, PICTURE, DATA, MARKDOWN = "comparison.html", "curves.png", "comparison.json", "comparison.md"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A run, what to call it, and what it did with each prompt (by the prompt's text)."""

    run: Run
    label: str
    outcomes: dict[str, bool]
    pairs_digest: str | None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What differs. ``settings`` and ``results``: a row's name and a value a run; ``tests``: sentences, against the
    first run; ``curves`` as :mod:`flows.reports.compare_plot` draws them."""

    labels: tuple[str, ...]
    ids: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    results: dict[str, tuple[str, ...]]
    tests: tuple[str, ...]
    curves: dict[str, dict[str, list[tuple[int, float]]]]


def compare(experiment: Experiment, runs: Sequence[Run]) -> RunComparison:
    """Runs against the first of them.

    Raises RecipeError when there are fewer than two.
    """
    if len({run.info.run_id for run in runs}) < 2:
        raise RecipeError("There is one run to compare.", "It takes two.", "dpo runs lists them.")
    entries = [contestant(experiment, run) for run in runs]
    params = [run.data.params for run in runs]
    return RunComparison(
        labels=tuple(one.label for one in entries),
        ids=tuple(run.info.run_id for run in runs),
        settings={leaf: tuple(told.get(leaf, "—") for told in params) for leaf in differing(runs)},
        results=results(runs),
        tests=tuple(line for one in entries[1:] for line in tested(one, entries[0])),
        curves={one.label: histories(experiment, one.run) for one in entries},
    )


def resolved(experiment: Experiment, texts: Sequence[str]) -> list[Run]:
    """The runs that are meant, each once."""
    found = [find(experiment, text) for text in texts]
    return list({run.info.run_id: run for run in found}.values())


def contestant(experiment: Experiment, run: Run) -> Contestant:
    """A run with its outcomes, which are empty when it was asked no prompts or is not evaluated yet."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    held_out = [one.dataset.digest for one in inputs if any(tag.value == "evaluation" for tag in one.tags)]
    label = f"{run.info.run_name} ({run.info.run_id[:ID]})"
    return Contestant(run, label, outcomes(experiment, run), held_out[0] if held_out else None)


def outcomes(experiment: Experiment, run: Run) -> dict[str, bool]:
    """Whether each prompt was followed strictly; one without a verdict is left out."""
    with tempfile.TemporaryDirectory() as temporary, as_tracking_error(experiment.uri):
        try:
            path = experiment.client.download_artifacts(run.info.run_id, OUTCOMES, temporary)
        except (MlflowException, OSError):
            return {}
        rows = journal.read(Path(path))
    return {str(row["prompt"]): all(row["strict"]) for row in rows if row.get("error") is None}


def results(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The final numbers that any of the runs has."""
    told = {}
    for name, words in (RESULTS | MORE).items():
        values = [run.data.metrics.get(f"{AFTER}/{name}") for run in runs]
        if any(value is not None for value in values):
            told[words] = tuple("—" if value is None else f"{value:.4f}" for value in values)
    return told


def tested(one: Contestant, first: Contestant) -> list[str]:
    """What the difference of two runs amounts to, in sentences."""
    told, common = [], one.outcomes.keys() & first.outcomes.keys()
    ours, theirs = measured(one), measured(first)
    if common:
        gained = sum(one.outcomes[key] and not first.outcomes[key] for key in common)
        lost = sum(first.outcomes[key] and not one.outcomes[key] for key in common)
        cells = f"{gained} only it follows, {lost} only the other; McNemar's exact p = {mcnemar(gained, lost):.3g}"
        told.append(f"{one.label} {compare_prompt_strict_acc(ours, theirs).sentence}: {cells}.")
    elif one.outcomes or first.outcomes:
        told.append(f"{one.label} and {first.label} were not evaluated on the same prompts: no paired test of those.")
    if ours.num_pairs and theirs.num_pairs and one.pairs_digest == first.pairs_digest:
        told.append(f"{one.label} {compare_test_accuracy(ours, theirs).sentence}.")
    return told


def measured(one: Contestant) -> ModelMeasurements:
    """A run's numbers as the rule of promotion takes them."""
    prefix = f"{AFTER}/"
    told = {name.removeprefix(prefix): value for name, value in one.run.data.metrics.items() if name.startswith(prefix)}
    accuracy, low, high = (told.get(f"test/accuracy{end}", 0.0) for end in ("", "_low", "_high"))
    known = ModelMeasurements(one.label, "", one.outcomes, "", accuracy, low, high, int(told.get("test/num_pairs", 0)))
    return replace(known, margin_noise=told.get("test/margin_noise", 0.0), beyond_noise=accuracy_beyond_noise(told))


def histories(experiment: Experiment, run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves that are drawn, and no other metric's history."""
    told = {}
    with as_tracking_error(experiment.uri):
        for metric in compare_plot.METRICS:
            if metric in run.data.metrics:
                history = experiment.client.get_metric_history(run.info.run_id, metric)
                told[metric] = sorted({point.step: point.value for point in history}.items())
    return told


def write(comparison: RunComparison, place: Path) -> Path:
    """The picture, the page, a table in Markdown and all of it as JSON into a directory; returns the page's path."""
    place.mkdir(parents=True, exist_ok=True)
    compare_plot.draw(comparison.curves, place / PICTURE)
    (place / PAGE).write_text(comparison_page.html(comparison, (place / PICTURE).read_bytes()))
    (place / MARKDOWN).write_text(comparison_page.markdown(comparison))
    (place / DATA).write_text(json.dumps(plain(comparison), indent=1, ensure_ascii=False))
    return place / PAGE


def plain(comparison: RunComparison) -> dict[str, Any]:
    """A comparison as JSON values, without the curves."""
    names = ("labels", "ids", "settings", "results", "tests")
    return {name: getattr(comparison, name) for name in names}


def folder(comparison: RunComparison) -> str:
    """A name for the files of a comparison."""
    return "-".join(identity[:ID] for identity in comparison.ids[:6])


def log(experiment: Experiment, comparison: RunComparison, place: Path, run_id: str | None = None) -> None:
    """The files as artifacts of a run: the given one, else the first that is compared."""
    with as_tracking_error(experiment.uri):
        target = run_id or comparison.ids[0]
        experiment.client.log_artifacts(target, str(place), f"comparison/{folder(comparison)}")
