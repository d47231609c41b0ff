"""Evaluation report: comparisons count prompts, not samples, and fit the kind of score."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpo_core.cli import evaluation_report
from dpo_core.errors import EvaluationError
from dpo_core.records import TaskResult


def result(directory: Path, name: str, values: dict[str, list[float]], **metrics: float) -> TaskResult:
    """A result of a task ``tales`` with one score. ``values``: by prompt, one per epoch."""
    path = directory / name
    path.mkdir()
    lines = [line(prompt, epoch, value) for prompt, epochs in values.items() for epoch, value in enumerate(epochs, 1)]
    (path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return TaskResult(
        path=path,
        fingerprint="",
        task="tales",
        task_version="0",
        model_name=name,
        model_fingerprint="",
        settings={},
        samples=len(lines),
        failed=0,
        metrics=metrics,
    )


def line(prompt: str, epoch: int, value: float, **more: Any) -> dict[str, Any]:
    fields = {"id": prompt, "epoch": epoch, "prompt": f"Ask {prompt}.", "response": "So.", "values": {"score": value}}
    return fields | {"sizes": {}, "stop_reason": "stop", "tokens": 2, "error": None} | more


def report(*results: TaskResult) -> str:
    console = Console(width=120, highlight=False, record=True, file=StringIO())
    evaluation_report.print_results(results, 0, console)
    return console.export_text()


def test_epochs_of_a_prompt_are_one_prompt(tmp_path: Path) -> None:
    """Eight epochs of ten prompts count as ten prompts."""
    first = result(tmp_path, "one", {f"p{index}": [1.0] * 8 for index in range(10)})
    second = result(tmp_path, "other", {f"p{index}": [float(index < 2)] * 8 for index in range(10)})
    paired = evaluation_report.compare_results(first, second)["score"]
    assert (paired.prompts, len(paired.gained), paired.p) == (10, 8, pytest.approx(2 / 2**8))
    assert "one is better: score 100.0% against 20.0% of 10 prompts, 8 prompts gained and 0 lost, exact McNemar p" in (
        report(first, second)
    )


def test_epochs_are_averaged(tmp_path: Path) -> None:
    first = result(tmp_path, "one", {"a": [1, 0, 0, 1], "b": [1, 1, 1, 1]})
    second = result(tmp_path, "other", {"a": [0, 0, 0, 1], "b": [1, 1, 1, 1]})
    paired = evaluation_report.compare_results(first, second)["score"]
    assert (paired.first, paired.second, paired.gained, paired.is_binary, paired.are_shares) == (
        0.75,
        0.625,
        ("a",),
        False,
        True,
    )


def test_a_score_that_is_no_share_is_not_a_percentage(tmp_path: Path) -> None:
    first = result(tmp_path, "one", {f"p{index}": [30.5] for index in range(9)})
    second = result(tmp_path, "other", {f"p{index}": [40.0] for index in range(9)})
    assert "other is higher: score 30.5 against 40 of 9 prompts, 0 prompts gained and 9 lost, sign test, p = " in (
        report(first, second)
    )


def test_models_without_a_score_in_common_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no score that both models have"):
        report(result(tmp_path, "one", {"a": [1]}), result(tmp_path, "other", {"b": [1]}))


def test_a_standard_error_equal_to_its_metric_is_shown(tmp_path: Path) -> None:
    text = report(result(tmp_path, "one", {"a": [1], "b": [0]}, accuracy=0.5, stderr=0.5, loop_share=0.5))
    assert [row.split() for row in text.splitlines() if "0.5" in row] == [
        ["accuracy", "0.5", "±", "0.500"],
        ["loop_share", "0.5"],
    ]


def test_prompts_that_fill_the_context_are_counted(tmp_path: Path) -> None:
    first = result(tmp_path, "one", {"a": [1], "b": [0]}, accuracy=0.5)
    with (first.path / "answers.jsonl").open("a") as more:
        more.write(json.dumps(line("c", 1, 0.0, stop_reason="model_length", tokens=0)) + "\n")
    assert "one, 1 prompt without a response: they fill the model's context" in report(first)
