"""Metric names of tasks: which metrics are values, which are standard errors, which are a task's main metrics."""

from collections.abc import Iterable, Mapping

from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.records import EvalResult

MEANS = ("accuracy", "mean")
SHARE, ERROR = "_acc", "stderr"


def standard_error(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric's standard error; None when it has none.

    A scorer's ``stderr`` belongs to its mean, or to its only metric. IFEval has a standard error for each ``_acc``.
    """
    stem, slash, leaf = name.rpartition("/")
    if leaf.endswith(SHARE):
        return metrics.get(f"{name.removesuffix(SHARE)}_{ERROR}")
    only = [other for other in value_names(metrics) if other.rpartition("/")[0] == stem] == [name]
    return metrics.get(stem + slash + ERROR) if leaf in MEANS or only else None


def value_names(metrics: Iterable[str]) -> list[str]:
    """Names of the metrics that are not standard errors."""
    return [name for name in metrics if not name.endswith(ERROR)]


def other_task_metrics(result: EvalResult) -> list[str]:
    """Main metrics of every task except IFEval: each scorer's mean, or all its metrics when it has no mean."""
    names: list[str] = []
    for task in result.tasks:
        if task != IFEVAL:
            parts = {name: name.rpartition("/") for name in value_names(result.metrics) if name.startswith(f"{task}/")}
            with_mean = {scorer for scorer, _, leaf in parts.values() if leaf in MEANS}
            names += [name for name, (scorer, _, leaf) in parts.items() if leaf in MEANS or scorer not in with_mean]
    return names
