"""Report of a run in MLflow; logging it twice is the same as logging it once."""

import json
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

from dpo_core.config.recipe import DataSettings, EvaluateSettings, Recipe, TrackSettings, TrainSettings
from dpo_core.config.settings import read_recipe
from dpo_core.data import report
from dpo_core.data.lengths import LengthCounts
from dpo_core.records import Promotion
from flows.registry.versions import Candidate
from flows.reports import run_report
from flows.tracking.mlflow_run import RunHandle
from tests.flows.fake import steps_of

RECIPE = Recipe(
    data=DataSettings(dataset='a "strange" näme.jsonl'),
    train=TrainSettings(learning_rate=3e-5, max_steps=30, log_path=Path("there")),
    evaluate=EvaluateSettings(tasks=()),
    track=TrackSettings(tracking_uri="http://me:secret@there"),
)


def files(run: RunHandle, path: str = "") -> set[str]:
    return {found.path for found in run.client.list_artifacts(run.run_id, path)}


def test_the_recipe_file_is_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(run_report.to_toml(RECIPE))
    expected = RECIPE.model_copy(
        update={"track": TrackSettings(), "train": RECIPE.train.model_copy(update={"log_path": None})}
    )
    assert read_recipe(path, [], {}) == expected
    assert tomllib.loads(path.read_text())["train"]["max_steps"] == 30


def test_command_repeats_the_recipe_without_secrets() -> None:
    command = run_report.run_command(RECIPE)
    words = shlex.split(command)
    assert words[:2] == ["dpo", "run"]
    again = read_recipe(None, words[2:], {})
    assert (again.data, again.evaluate) == (RECIPE.data, RECIPE.evaluate)
    assert (again.train.learning_rate, again.train.max_steps) == (3e-5, 30)
    assert "secret" not in command
    assert len(words) == 6


def test_the_data_are_inputs_with_digest_and_counts(run: RunHandle, candidate: Candidate) -> None:
    for _ in range(2):
        run_report.log_data(run, candidate.pairs, candidate.rendered)
    inputs = run.client.get_run(run.run_id).inputs.dataset_inputs
    datasets = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert len(inputs) == 2
    assert (datasets["training"].name, datasets["training"].digest) == ("hhh train", "d")
    assert (datasets["evaluation"].name, datasets["evaluation"].digest) == ("hhh test", "d")
    assert json.loads(datasets["training"].profile)["dropped"] == {"equal sides": 10}


def test_data_report_and_its_plot_are_logged(run: RunHandle, candidate: Candidate) -> None:
    counts = LengthCounts("tokens")
    counts.add([10, 20], [3, 4], [5, 6])
    measured = candidate.rendered.train_report.model_copy(update=dict(counts.report_fields()))
    report.write_report(candidate.rendered.path, "hhh", {"train": measured})
    rendered = candidate.rendered.model_copy(update={"train_report": measured})
    run_report.log_data(run, candidate.pairs, rendered)
    assert files(run, "data") == {"data/report.json", "data/report.txt", "data/lengths.png"}
    profile = json.loads(run.client.get_run(run.run_id).inputs.dataset_inputs[0].dataset.profile)
    assert profile["longer_chosen"] == 0.0


def test_recipe_curves_and_journal_are_logged(run: RunHandle, candidate: Candidate) -> None:
    run_report.log_files(run, RECIPE, candidate.checkpoint.log_path)
    assert files(run) == {"recipe.toml", "curves.png", "journal"}
    assert files(run, "journal") == {"journal/metrics.jsonl"}


def test_results_are_logged_as_metrics_files_and_a_table(run: RunHandle, candidate: Candidate) -> None:
    for _ in range(2):
        run_report.log_results(run, candidate)
    metrics = run.client.get_run(run.run_id).data.metrics
    assert (metrics["before/prompt_strict_acc"], metrics["after/prompt_strict_acc"]) == (0.4, 0.9)
    assert steps_of(run, "after/test/accuracy") == [0]
    assert {"instructions.png", "rewards.png"} <= files(run)
    assert files(run, "evaluation/after") == {
        f"evaluation/after/{name}"
        for name in ("ifeval.eval", "outcomes.jsonl", "record.json", "rewards.jsonl", "samples.jsonl")
    }
    table = json.loads(Path(run.client.download_artifacts(run.run_id, "samples.json")).read_text())
    assert table["columns"] == ["prompt", "base", "trained"]
    assert table["data"][1] == ["prompt 1", "base says 1", "trained says 1"]
    assert len(table["data"]) == 3


def test_description_has_results_reason_and_command(run: RunHandle, candidate: Candidate) -> None:
    reason = "version 2 is promoted over version 1: it follows more."
    promotion = Promotion(promoted=True, reason=reason, name="dpo-hhh", version=2, champion_version=2)
    run_report.set_description(run, RECIPE, candidate, promotion)
    description = run.client.get_run(run.run_id).data.tags["mlflow.note.content"]
    assert "- prompts followed strictly (IFEval): **0.900**, base 0.400" in description
    assert "Version 2 of **dpo-hhh**. Version 2 is promoted over version 1: it follows more." in description
    assert f"    {run_report.run_command(RECIPE)}" in description
    assert "|" not in description
    assert f"](get-artifact?path=instructions.png&run_uuid={run.run_id})" in description


def test_without_prompts_the_description_leaves_them_out(candidate: Candidate) -> None:
    bare = replace(candidate, after=candidate.after.model_copy(update={"metrics": {"test/accuracy": 0.9}}))
    promotion = Promotion(promoted=False, reason="no.", name="n", version=1, champion_version=None)
    assert "IFEval" not in run_report.description(RECIPE, bare, promotion)
