"""The rule by which a member of a sweep is hopeless: a median rule with the noise of the measurement in it."""

from collections.abc import Sequence
from statistics import median

from dpo_core.records import StepMetrics

ACCURACY, HIGH, PROGRESS = "test/accuracy", "test/accuracy_high", "progress"
LEAST_OTHERS = 2


def hopeless(own: Sequence[StepMetrics], others: Sequence[Sequence[StepMetrics]], after: float) -> str | None:
    """Why a member should be stopped, None while it should go on.

    It is hopeless when, at an evaluation past the share ``after`` of its steps and before its last step, even the upper
    end of the 95 % interval of its best held-out accuracy is below the median of what the others had reached by the
    same step; two others at least must have come as far. (Google Vizier's median rule compares means, and would
    stop half of those that differ by chance.)

    Accuracy is what members have in common: losses of different betas are on different scales.
    """
    evaluations = [step for step in own if ACCURACY in step.values]
    progress = max((step.values.get(PROGRESS, 0.0) for step in own), default=0.0)
    if not evaluations or progress >= 1 or reached(own, evaluations[-1].step) < after:
        return None
    last = evaluations[-1].step
    rivals = [best for one in others if (best := best_by(one, last, ACCURACY)) is not None and one[-1].step >= last]
    if len(rivals) < LEAST_OTHERS:
        return None
    upper = best_by(own, last, HIGH)
    if upper is None or upper >= median(rivals):
        return None
    return (
        f"at step {last} its held-out accuracy was {upper:.3f} at the very best, the median of {len(rivals)} others"
        f" {median(rivals):.3f}"
    )


def reached(steps: Sequence[StepMetrics], by: int) -> float:
    """The share of its steps that a run had done by a step."""
    return max((step.values.get(PROGRESS, 0.0) for step in steps if step.step <= by), default=0.0)


def best_by(steps: Sequence[StepMetrics], by: int, metric: str) -> float | None:
    """The greatest value of a metric by a step, None if it was not measured."""
    return max((step.values[metric] for step in steps if step.step <= by and metric in step.values), default=None)
