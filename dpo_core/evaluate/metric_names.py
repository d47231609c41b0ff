"""What a task's metrics are called: which of them tell how a model did, and which how sure that is."""

from collections.abc import Iterable, Mapping

from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.records import EvalResult

MEANS = ("accuracy", "mean")
SHARE, ERROR = "_acc", "stderr"


def standard_error(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric's standard error, if there is one.

    A scorer has one ``stderr``: of its mean, or of the only thing that it measures. IFEval has one for each ``_acc``.
    """
    stem, slash, leaf = name.rpartition("/")
    if leaf.endswith(SHARE):
        return metrics.get(f"{name.removesuffix(SHARE)}_{ERROR}")
    only = [other for other in measured(metrics) if other.rpartition("/")[0] == stem] == [name]
    return metrics.get(stem + slash + ERROR) if leaf in MEANS or only else None


def measured(metrics: Iterable[str]) -> list[str]:
    """The metrics that are no standard errors."""
    return [name for name in metrics if not name.endswith(ERROR)]


def of_other_tasks(result: EvalResult) -> list[str]:
    """The main metrics of every task but IFEval, whose are known by name: each scorer's mean or, without one, all."""
    told: list[str] = []
    for task in result.tasks:
        if task != IFEVAL:
            found = {name: name.rpartition("/") for name in measured(result.metrics) if name.startswith(f"{task}/")}
            with_mean = {scorer for scorer, _, leaf in found.values() if leaf in MEANS}
            told += [name for name, (scorer, _, leaf) in found.items() if leaf in MEANS or scorer not in with_mean]
    return told
