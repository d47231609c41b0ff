"""What a person finds on a run's page besides its curves: data, recipe, files, samples, results, the command."""

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
from dpo_core.evaluate.metric_names import of_other_tasks, standard_error
from dpo_core.records import DataReport, EvalResult, PairSet, Promotion, RenderedSet
from dpo_core.stages.train import NOT_IN_KEY
from dpo_core.train.checkpoint import journal, run_dir
from flows.registry import champion
from flows.registry.versions import Candidate, test_dataset_name
from flows.reports.curve_plot import curves
from flows.reports.data_plot import lengths
from flows.reports.instruction_plot import by_kind, instructions
from flows.reports.reward_plot import rewards
from flows.tracking.mlflow_run import AFTER, BEFORE, RunHandle, as_tracking_error, log_result, set_tags

TOLD = {
    "prompt_strict_acc": "prompts followed strictly (IFEval)",
    "test/accuracy": "held-out preference accuracy",
    "test/nll_chosen": "held-out NLL of the chosen side",
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
    """The training and test pairs as inputs of the run, with what was dropped and why; the data report and its plot."""
    name = Path(pairs.dataset).name
    parts = (
        ("training", f"{name} train", rendered.train_report),
        ("evaluation", test_dataset_name(pairs), rendered.test_report),
    )
    inputs = [
        DatasetInput(dataset(label, pairs, report), [InputTag("mlflow.data.context", context)])
        for context, label, report in parts
    ]
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        handle.client.log_inputs(handle.run_id, inputs)
        plot = Path(temporary) / "lengths.png"
        lengths({"train": rendered.train_report, "test": rendered.test_report}, plot)
        for path in (rendered.path / JSON, rendered.path / TEXT, plot):
            if path.is_file():
                handle.client.log_artifact(handle.run_id, str(path), "data")


def dataset(name: str, pairs: PairSet, report: DataReport) -> Dataset:
    """One split as MLflow describes data; its digest is the fingerprint of the pairs."""
    profile = {"num_rows": report.kept, **report.model_dump(exclude={"kept", "examples", "lengths", "uncut"})}
    source = json.dumps({"uri": pairs.source})
    return Dataset(name, pairs.fingerprint, "local", source, COLUMNS, json.dumps(profile))


def log_files(handle: RunHandle, recipe: Recipe, log_path: Path) -> None:
    """The recipe, the journal and log, and the curves drawn from it."""
    with tempfile.TemporaryDirectory() as temporary, as_tracking_error(handle.uri):
        place = Path(temporary)
        (place / "recipe.toml").write_text(to_toml(recipe))
        curves(journal.read_steps(log_path / run_dir.METRICS), place / "curves.png")
        handle.client.log_artifacts(handle.run_id, str(place))
        for name in (run_dir.CONFIG, run_dir.METRICS, run_dir.CHECKPOINTS, run_dir.LOG, run_dir.SAMPLES):
            if (log_path / name).is_file():
                handle.client.log_artifact(handle.run_id, str(log_path / name), "journal")


def log_results(handle: RunHandle, candidate: Candidate) -> None:
    """Numbers, outcomes and inspect's logs of the base and of the trained model, their answers side by side, and drawn
    what the trained model follows and prefers."""
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        for when, result in ((BEFORE, candidate.before), (AFTER, candidate.after)):
            log_result(handle, when, result)
            for path in evaluation_files(result):
                handle.client.log_artifact(handle.run_id, str(path), f"evaluation/{when}")
        instructions(candidate.before, candidate.after, Path(temporary) / INSTRUCTIONS)
        rewards(journal.read(candidate.after.path / REWARDS), Path(temporary) / REWARD_PLOT)
        handle.client.log_artifacts(handle.run_id, temporary)
        before, after = (journal.read(result.path / SAMPLES) for result in (candidate.before, candidate.after))
        # As log_table writes it, which would append the same rows again when a run is projected again.
        handle.client.log_dict(handle.run_id, side_by_side(before, after), TABLE)
        set_tags(handle, {"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})


def evaluation_files(result: EvalResult) -> Iterator[Path]:
    """What an evaluation left behind, with its record, which says how it was made; not the store's other notes."""
    for path in sorted(result.path.iterdir()):
        if path.suffix in (".jsonl", ".eval") or path.name == RECORD:
            yield path


def side_by_side(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Prompts with both models' answers, as a table of MLflow's."""
    trained = {sample["prompt"]: sample["answer"] for sample in after}
    rows = [[one["prompt"], one["answer"], trained[one["prompt"]]] for one in before if one["prompt"] in trained]
    return {"columns": ["prompt", "base", "trained"], "data": rows}


def describe(handle: RunHandle, recipe: Recipe, candidate: Candidate, promotion: Promotion) -> None:
    """The run's description: its result in a few lines, the command that repeats it, and the bar chart."""
    told = note(recipe, candidate, promotion)
    if by_kind(candidate.after):
        # MLflow's pages show a picture of the run by this address, relative to wherever the server is.
        told += f"\n\n![Instructions followed](get-artifact?path={INSTRUCTIONS}&run_uuid={handle.run_id})"
    set_tags(handle, {"mlflow.note.content": told})


def note(recipe: Recipe, candidate: Candidate, promotion: Promotion) -> str:
    """The description in Markdown, of which MLflow renders lists and code but no tables."""
    said = champion.report_paragraph(promotion.name, promotion.version, promotion.reason, promotion.gates)
    return "\n".join([*results(candidate), "", said, "", champion.COMMAND_HEADING, "", f"    {command(recipe)}"])


def results(candidate: Candidate) -> list[str]:
    """The numbers of the trained model beside its base's, as a list in Markdown."""
    before, after = candidate.before.metrics, candidate.after.metrics
    told = [
        f"- {words}: **{after[name]:.3f}**, base {before[name]:.3f}"
        for name, words in TOLD.items()
        if name in before and name in after
    ]
    others = [name for name in of_other_tasks(candidate.after) if name in before]
    return told + [f"- {name}: **{measure(after, name)}**, base {measure(before, name)}" for name in others]


def measure(metrics: Mapping[str, float], name: str) -> str:
    """A metric, with its standard error if that is known."""
    error = standard_error(metrics, name)
    return f"{metrics[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")


def command(recipe: Recipe) -> str:
    """The command line of this recipe: what differs from the defaults, wherever it came from."""
    default = plain(Recipe())
    changed = {leaf: value for leaf, value in plain(recipe).items() if value != default[leaf]}
    return shlex.join(["dpo", "run", *(f"{leaf}={word(value)}" for leaf, value in changed.items())])


def plain(recipe: Recipe) -> dict[str, Any]:
    """The leaves that say what is computed, not where it goes or how it is shown."""
    told = recipe.model_dump(mode="json", exclude={"track": True, "train": NOT_IN_KEY})
    return {leaf: value for section in told.values() for leaf, value in section.items()}


def word(value: Any) -> str:
    """A value as the command line takes it."""
    return ",".join(value) or "none" if isinstance(value, list) else str(value)


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as a file that ``dpo run`` takes; a setting that is None is left out, being None by default."""
    told = recipe.model_dump(mode="json", exclude={"track": True, "train": NOT_IN_KEY})
    # What JSON writes for strings, numbers, booleans and lists of them is TOML as well.
    tables = [
        "\n".join(
            [f"[{section}]", *(f"{leaf} = {json.dumps(value)}" for leaf, value in leaves.items() if value is not None)]
        )
        for section, leaves in told.items()
    ]
    return "\n\n".join(tables) + "\n"
