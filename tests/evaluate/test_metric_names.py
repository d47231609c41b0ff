"""Metric names of inspect-ai: standard errors and main metrics."""

from pathlib import Path

import pytest

from dpo_core.evaluate.metric_names import other_task_metrics, standard_error
from dpo_core.records import EvalResult

METRICS = {
    "prompt_strict_acc": 0.5,
    "prompt_strict_stderr": 0.04,
    "test/accuracy": 0.7,
    "caps/accuracy": 0.8,
    "caps/stderr": 0.1,
    "tales/includes/mean": 0.3,
    "tales/includes/stderr": 0.05,
    "tales/includes/std": 0.2,
    "tales/length/words": 33.0,
    "rare/f1": 0.6,
    "rare/stderr": 0.02,
    "loud/exclamations": 0.25,
    "loud/capitals": 0.75,
    "loud/stderr": 0.01,
    "capsize/accuracy": 0.9,
    "ifeval/no_comma": 1.0,
}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("prompt_strict_acc", 0.04),
        ("test/accuracy", None),
        ("caps/accuracy", 0.1),
        ("tales/includes/mean", 0.05),
        ("tales/includes/std", None),
        ("rare/f1", 0.02),
        ("loud/capitals", None),  # ambiguous: the scorer has two metrics
    ],
)
def test_standard_error_belongs_to_the_mean_or_the_only_metric(name: str, error: float | None) -> None:
    assert standard_error(METRICS, name) == error


def test_main_metrics_are_means_or_else_all_metrics() -> None:
    tasks = dict.fromkeys(("ifeval", "caps", "tales", "rare", "loud"), "1")
    result = EvalResult.model_construct(path=Path(), tasks=tasks, metrics=METRICS)
    expected = [
        "caps/accuracy",
        "tales/includes/mean",
        "tales/length/words",
        "rare/f1",
        "loud/exclamations",
        "loud/capitals",
    ]
    assert other_task_metrics(result) == expected
