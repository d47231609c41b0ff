"""Comparison of runs: recipes, results, paired tests on the same prompts, and training curves."""

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
from flows.reports.comparison_page import RunComparison
from flows.reports.run_table import ID_LENGTH, RESULTS, Experiment, differing_settings, find_run
from flows.tracking.mlflow_run import AFTER, as_tracking_error

OUTCOMES = "evaluation/after/outcomes.jsonl"
MORE_RESULTS = {
    "inst_strict_acc": "instructions followed (strict)",
    "test/margin": "held-out margin",
    "ended_share": "responses that end by themselves",
    "loop_share": "responses that loop",
}
PAGE, PICTURE, DATA, MARKDOWN = "comparison.html", "curves.png", "comparison.json", "comparison.md"


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run, its label, and whether it followed each prompt strictly (by the prompt's text).

    ``pairs_digest``: fingerprint of the held-out pairs, None if the run logged none.
    """

    run: Run
    label: str
    outcomes: dict[str, bool]
    pairs_digest: str | None


def compare(experiment: Experiment, runs: Sequence[Run]) -> RunComparison:
    """Compare runs with the first one.

    Raises RecipeError when there are fewer than two.
    """
    if len({run.info.run_id for run in runs}) < 2:
        raise RecipeError(
            "Only one run is given.", "A comparison needs at least two runs.", "To list the runs, run dpo runs."
        )
    compared = [load_compared_run(experiment, run) for run in runs]
    params = [run.data.params for run in runs]
    return RunComparison(
        labels=tuple(entry.label for entry in compared),
        ids=tuple(run.info.run_id for run in runs),
        settings={leaf: tuple(values.get(leaf, "—") for values in params) for leaf in differing_settings(runs)},
        results=result_rows(runs),
        tests=tuple(line for entry in compared[1:] for line in paired_test_sentences(entry, compared[0])),
        curves={entry.label: metric_curves(experiment, entry.run) for entry in compared},
    )


def find_runs(experiment: Experiment, texts: Sequence[str]) -> list[Run]:
    """The runs that the texts name, without duplicates."""
    found = [find_run(experiment, text) for text in texts]
    return list({run.info.run_id: run for run in found}.values())


def load_compared_run(experiment: Experiment, run: Run) -> ComparedRun:
    """A run with its outcomes, which are empty while it has no IFEval results."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    held_out = [entry.dataset.digest for entry in inputs if any(tag.value == "evaluation" for tag in entry.tags)]
    label = f"{run.info.run_name} ({run.info.run_id[:ID_LENGTH]})"
    return ComparedRun(run, label, load_outcomes(experiment, run), held_out[0] if held_out else None)


def load_outcomes(experiment: Experiment, run: Run) -> dict[str, bool]:
    """Whether each prompt was followed strictly, by its text; failed samples are left out."""
    with tempfile.TemporaryDirectory() as temporary, as_tracking_error(experiment.uri):
        try:
            path = experiment.client.download_artifacts(run.info.run_id, OUTCOMES, temporary)
        except (MlflowException, OSError):
            return {}
        rows = journal.read(Path(path))
    return {str(row["prompt"]): all(row["strict"]) for row in rows if row.get("error") is None}


def result_rows(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The final metrics, a value per run; a metric that no run has is left out."""
    rows = {}
    for name, words in (RESULTS | MORE_RESULTS).items():
        values = [run.data.metrics.get(f"{AFTER}/{name}") for run in runs]
        if any(value is not None for value in values):
            rows[words] = tuple("—" if value is None else f"{value:.4f}" for value in values)
    return rows


def paired_test_sentences(compared: ComparedRun, first: ComparedRun) -> list[str]:
    """Sentences that compare a run with the first one: prompts followed, then held-out preference accuracy."""
    sentences, common = [], compared.outcomes.keys() & first.outcomes.keys()
    run_measured, first_measured = measurements(compared), measurements(first)
    if common:
        gained = sum(compared.outcomes[key] and not first.outcomes[key] for key in common)
        lost = sum(first.outcomes[key] and not compared.outcomes[key] for key in common)
        cells = f"only this run follows {gained}, only the first {lost}; exact McNemar p = {mcnemar(gained, lost):.3g}"
        sentences.append(
            f"{compared.label} {compare_prompt_strict_acc(run_measured, first_measured).sentence}: {cells}."
        )
    elif compared.outcomes or first.outcomes:
        sentences.append(
            f"{compared.label} and {first.label} were evaluated on different prompts, so no paired test compares them."
        )
    if run_measured.num_pairs and first_measured.num_pairs and compared.pairs_digest == first.pairs_digest:
        sentences.append(f"{compared.label} {compare_test_accuracy(run_measured, first_measured).sentence}.")
    return sentences


def measurements(compared: ComparedRun) -> ModelMeasurements:
    """A run's final metrics as input of the promotion rule; the fingerprints of prompts and pairs are left empty."""
    prefix = f"{AFTER}/"
    logged = compared.run.data.metrics
    metrics = {name.removeprefix(prefix): value for name, value in logged.items() if name.startswith(prefix)}
    accuracy, low, high = (metrics.get(f"test/accuracy{end}", 0.0) for end in ("", "_low", "_high"))
    num_pairs = int(metrics.get("test/num_pairs", 0))
    measured = ModelMeasurements(compared.label, "", compared.outcomes, "", accuracy, low, high, num_pairs)
    return replace(
        measured, margin_noise=metrics.get("test/margin_noise", 0.0), beyond_noise=accuracy_beyond_noise(metrics)
    )


def metric_curves(experiment: Experiment, run: Run) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) points of each plotted metric that the run has."""
    curves = {}
    with as_tracking_error(experiment.uri):
        for metric in compare_plot.METRICS:
            if metric in run.data.metrics:
                history = experiment.client.get_metric_history(run.info.run_id, metric)
                curves[metric] = sorted({point.step: point.value for point in history}.items())
    return curves


def write_files(comparison: RunComparison, directory: Path) -> Path:
    """Write plot, HTML page, Markdown and JSON to ``directory``; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    compare_plot.draw_comparison(comparison.curves, directory / PICTURE)
    (directory / PAGE).write_text(comparison_page.to_html(comparison, (directory / PICTURE).read_bytes()))
    (directory / MARKDOWN).write_text(comparison_page.to_markdown(comparison))
    (directory / DATA).write_text(json.dumps(to_json(comparison), indent=1, ensure_ascii=False))
    return directory / PAGE


def to_json(comparison: RunComparison) -> dict[str, Any]:
    """The comparison as JSON values, without the curves."""
    names = ("labels", "ids", "settings", "results", "tests")
    return {name: getattr(comparison, name) for name in names}


def directory_name(comparison: RunComparison) -> str:
    """Name of the comparison's directory: the beginnings of the first six run ids."""
    return "-".join(identity[:ID_LENGTH] for identity in comparison.ids[:6])


def log_files(experiment: Experiment, comparison: RunComparison, directory: Path, run_id: str | None = None) -> None:
    """Log the files in ``directory`` as artifacts of the run ``run_id``, or of the first compared run if it is None."""
    with as_tracking_error(experiment.uri):
        target = run_id or comparison.ids[0]
        experiment.client.log_artifacts(target, str(directory), f"comparison/{directory_name(comparison)}")
