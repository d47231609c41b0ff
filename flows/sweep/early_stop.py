"""Median stopping rule for members of a sweep, which allows for the noise of the measured accuracy."""

from collections.abc import Sequence
from statistics import median

from dpo_core.records import StepMetrics

ACCURACY, HIGH, PROGRESS = "test/accuracy", "test/accuracy_high", "progress"
MIN_OTHERS = 2


def early_stop_reason(own: Sequence[StepMetrics], others: Sequence[Sequence[StepMetrics]], after: float) -> str | None:
    """The reason to stop a member early, None if it should continue.

    ``own`` and ``others`` are the journals of the member and of the other members; ``after`` is a share of the steps.
    The rule applies at evaluations past that share and before the last step, once MIN_OTHERS others have done as many
    steps. It stops the member if the highest upper end of the 95 % intervals of its held-out accuracy is below the
    median of the best accuracies that the others had by the same step. Google Vizier's median rule (Golovin et al.,
    2017) compares means and would stop half of the members that differ by chance.

    Members are compared by accuracy because losses with different betas have different scales.
    """
    evaluations = [step for step in own if ACCURACY in step.values]
    progress = max((step.values.get(PROGRESS, 0.0) for step in own), default=0.0)
    if not evaluations or progress >= 1 or progress_at(own, evaluations[-1].step) < after:
        return None
    last = evaluations[-1].step
    other_bests = [
        best for steps in others if (best := best_until(steps, last, ACCURACY)) is not None and steps[-1].step >= last
    ]
    if len(other_bests) < MIN_OTHERS:
        return None
    upper = best_until(own, last, HIGH)
    if upper is None or upper >= median(other_bests):
        return None
    return (
        f"at step {last} its held-out accuracy was {upper:.3f} at most (upper end of the 95 % interval),"
        f" below the median {median(other_bests):.3f} of {len(other_bests)} other members"
    )


def progress_at(steps: Sequence[StepMetrics], last_step: int) -> float:
    """The share of its steps that a run had done at ``last_step``, between 0 and 1."""
    return max((step.values.get(PROGRESS, 0.0) for step in steps if step.step <= last_step), default=0.0)


def best_until(steps: Sequence[StepMetrics], last_step: int, metric: str) -> float | None:
    """The highest value of a metric up to ``last_step``, None if it was not measured."""
    return max(
        (step.values[metric] for step in steps if step.step <= last_step and metric in step.values), default=None
    )
