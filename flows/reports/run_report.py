"""Report of a run on its MLflow page: data, recipe, files, samples, results, and the command that repeats it."""

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from dpo_core.cache.store import RECORD
from dpo_core.config.recipe import Recipe
from dpo_core.data.report import JSON, TEXT
from dpo_core.evaluate.metric_names import other_task_metrics, standard_error
from dpo_core.records import DataReport, EvalResult, PairSet, Promotion, RenderedSet
from dpo_core.stages.train import NOT_IN_KEY
from dpo_core.train.checkpoint import journal, run_dir
from flows.registry import champion
from flows.registry.versions import Candidate, test_dataset_name
from flows.reports.curve_plot import draw_curves
from flows.reports.data_plot import draw_data_report
from flows.reports.instruction_plot import draw_instructions, shares_by_kind
from flows.reports.reward_plot import draw_rewards
from flows.tracking.mlflow_run import AFTER, BEFORE, RunHandle, as_tracking_error, log_result, set_tags

HEADLINES = {
    "prompt_strict_acc": "prompts followed strictly (IFEval)",
    "test/accuracy": "held-out preference accuracy",
    "test/nll_chosen": "held-out NLL of the chosen response",
}
SAMPLES, TABLE = "samples.jsonl", "samples.json"
INSTRUCTIONS = "instructions.png"
REWARDS, REWARD_PLOT = "rewards.jsonl", "rewards.png"
COLUMNS = json.dumps(
    {
        "mlflow_colspec": [
            {"name": name, "type": "string", "required": True} for name in ("prompt", "chosen", "rejected")
        ]
    }
)


def log_data(handle: RunHandle, pairs: PairSet, rendered: RenderedSet) -> None:
    """Log the training and test pairs as inputs of the run, with rows dropped by cause, and the data report."""
    name = Path(pairs.dataset).name
    splits = (
        ("training", f"{name} train", rendered.train_report),
        ("evaluation", test_dataset_name(pairs), rendered.test_report),
    )
    inputs = [
        DatasetInput(mlflow_dataset(label, pairs, report), [InputTag("mlflow.data.context", context)])
        for context, label, report in splits
    ]
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        handle.client.log_inputs(handle.run_id, inputs)
        plot = Path(temporary) / "lengths.png"
        draw_data_report({"train": rendered.train_report, "test": rendered.test_report}, plot)
        for path in (rendered.path / JSON, rendered.path / TEXT, plot):
            if path.is_file():
                handle.client.log_artifact(handle.run_id, str(path), "data")


def mlflow_dataset(name: str, pairs: PairSet, report: DataReport) -> Dataset:
    """A split as an MLflow dataset; its digest is the fingerprint of the pairs."""
    profile = {"num_rows": report.kept, **report.model_dump(exclude={"kept", "examples", "lengths", "uncut"})}
    source = json.dumps({"uri": pairs.source})
    return Dataset(name, pairs.fingerprint, "local", source, COLUMNS, json.dumps(profile))


def log_files(handle: RunHandle, recipe: Recipe, log_path: Path) -> None:
    """Log the recipe, the files of ``log_path``, and the training curves."""
    with tempfile.TemporaryDirectory() as temporary, as_tracking_error(handle.uri):
        directory = Path(temporary)
        (directory / "recipe.toml").write_text(to_toml(recipe))
        draw_curves(journal.read_steps(log_path / run_dir.METRICS), directory / "curves.png")
        handle.client.log_artifacts(handle.run_id, str(directory))
        for name in (run_dir.CONFIG, run_dir.METRICS, run_dir.CHECKPOINTS, run_dir.LOG, run_dir.SAMPLES):
            if (log_path / name).is_file():
                handle.client.log_artifact(handle.run_id, str(log_path / name), "journal")


def log_results(handle: RunHandle, candidate: Candidate) -> None:
    """Log metrics, outcomes, inspect logs and responses of the base and the trained model, with plots of instructions
    followed and of rewards."""
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        for when, result in ((BEFORE, candidate.before), (AFTER, candidate.after)):
            log_result(handle, when, result)
            for path in evaluation_files(result):
                handle.client.log_artifact(handle.run_id, str(path), f"evaluation/{when}")
        draw_instructions(candidate.before, candidate.after, Path(temporary) / INSTRUCTIONS)
        draw_rewards(journal.read(candidate.after.path / REWARDS), Path(temporary) / REWARD_PLOT)
        handle.client.log_artifacts(handle.run_id, temporary)
        before, after = (journal.read(result.path / SAMPLES) for result in (candidate.before, candidate.after))
        # In the format of log_table, which itself would append the same rows again when a run is logged again.
        handle.client.log_dict(handle.run_id, responses_table(before, after), TABLE)
        set_tags(handle, {"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})


def evaluation_files(result: EvalResult) -> Iterator[Path]:
    """Paths of an evaluation's results, inspect logs and record, in order of their names."""
    for path in sorted(result.path.iterdir()):
        if path.suffix in (".jsonl", ".eval") or path.name == RECORD:
            yield path


def responses_table(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Prompts with both models' responses, in the format of an MLflow table."""
    trained = {sample["prompt"]: sample["answer"] for sample in after}
    rows = [
        [sample["prompt"], sample["answer"], trained[sample["prompt"]]]
        for sample in before
        if sample["prompt"] in trained
    ]
    return {"columns": ["prompt", "base", "trained"], "data": rows}


def set_description(handle: RunHandle, recipe: Recipe, candidate: Candidate, promotion: Promotion) -> None:
    """Set the run's description: results, decision, the command that repeats the run, and the plot of instructions."""
    content = description(recipe, candidate, promotion)
    if shares_by_kind(candidate.after):
        # MLflow shows an artifact as an image at this address, relative to the server's.
        content += f"\n\n![Instructions followed](get-artifact?path={INSTRUCTIONS}&run_uuid={handle.run_id})"
    set_tags(handle, {"mlflow.note.content": content})


def description(recipe: Recipe, candidate: Candidate, promotion: Promotion) -> str:
    """The description in Markdown, with lists and code only: MLflow renders no tables."""
    decision = champion.report_paragraph(promotion.name, promotion.version, promotion.reason, promotion.gates)
    return "\n".join(
        [*result_lines(candidate), "", decision, "", champion.COMMAND_HEADING, "", f"    {run_command(recipe)}"]
    )


def result_lines(candidate: Candidate) -> list[str]:
    """A Markdown list of metrics of the trained model, each beside the base's."""
    before, after = candidate.before.metrics, candidate.after.metrics
    lines = [
        f"- {words}: **{after[name]:.3f}**, base {before[name]:.3f}"
        for name, words in HEADLINES.items()
        if name in before and name in after
    ]
    others = [name for name in other_task_metrics(candidate.after) if name in before]
    return lines + [
        f"- {name}: **{format_metric(after, name)}**, base {format_metric(before, name)}" for name in others
    ]


def format_metric(metrics: Mapping[str, float], name: str) -> str:
    """A metric with three decimals, and its standard error if that was measured."""
    error = standard_error(metrics, name)
    return f"{metrics[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")


def run_command(recipe: Recipe) -> str:
    """The ``dpo run`` command of a recipe: the settings that differ from the defaults, without secrets."""
    default = command_settings(Recipe())
    changed = {leaf: value for leaf, value in command_settings(recipe).items() if value != default[leaf]}
    return shlex.join(["dpo", "run", *(f"{leaf}={format_value(value)}" for leaf, value in changed.items())])


def command_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings by name, as JSON values, without those of tracking and of where a run is stored or logged."""
    sections = recipe.model_dump(mode="json", exclude={"track": True, "train": NOT_IN_KEY})
    return {leaf: value for section in sections.values() for leaf, value in section.items()}


def format_value(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    return ",".join(value) or "none" if isinstance(value, list) else str(value)


def to_toml(recipe: Recipe) -> str:
    """The recipe as a TOML file for ``dpo run``; settings that are None are left out, as None is their default."""
    sections = recipe.model_dump(mode="json", exclude={"track": True, "train": NOT_IN_KEY})
    # JSON of strings, numbers, booleans and lists of these is valid TOML.
    tables = [
        "\n".join(
            [f"[{section}]", *(f"{leaf} = {json.dumps(value)}" for leaf, value in leaves.items() if value is not None)]
        )
        for section, leaves in sections.items()
    ]
    return "\n\n".join(tables) + "\n"
