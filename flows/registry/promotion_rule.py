"""Promotion rule: it compares a candidate's measurements with a rival's and returns a decision with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt
from typing import Literal, NamedTuple

from dpo_core.evaluate.paired_tests import mcnemar
from dpo_core.wilson import Z_95

ALPHA = 0.05

Verdict = Literal["better", "worse", "even"]


class Proportion(NamedTuple):
    """A proportion in [0, 1] and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelMeasurements:
    """Measurements of one model; stored with its version as JSON. ``name`` is its name in sentences ("version 3").

    ``followed``: for each prompt's key, whether every instruction was strictly followed; empty without prompts.
    ``accuracy``: proportion of ``num_pairs`` held-out pairs whose chosen side it prefers, ties counting ½, with the
    bounds of its 95 % Wilson interval.
    ``margin_noise``: how far exporting moved its margins, root mean square in nats. ``beyond_noise``: the accuracy and
    its bounds when pairs whose margin is within 1.96 ``margin_noise`` count as ties; None for a model without noise,
    such as a base.
    The fingerprints identify the prompts and pairs. ``asked``: what else the result depends on, the task's version and
    the settings of :data:`flows.registry.logged_model.GENERATION_SETTINGS`; empty without prompts or when unknown.
    """

    name: str
    prompts_fingerprint: str
    followed: dict[str, bool]
    pairs_fingerprint: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    num_pairs: int
    asked: dict[str, str] = field(default_factory=dict)
    margin_noise: float = 0.0
    beyond_noise: Sequence[float] | None = None

    @property
    def accuracy_interval(self) -> Proportion:
        """The accuracy with its interval."""
        return Proportion(self.accuracy, self.accuracy_low, self.accuracy_high)

    @property
    def accuracy_interval_beyond_noise(self) -> Proportion:
        """The accuracy with its interval when pairs within the export's noise count as ties."""
        return Proportion(*self.beyond_noise) if self.beyond_noise else self.accuracy_interval


@dataclass(frozen=True, slots=True)
class MeasureComparison:
    """Candidate against rival on one measure: both proportions, the 95 % interval of their difference, verdict.

    ``sentence`` states the comparison with its numbers.
    """

    candidate: float
    rival: float
    low: float
    high: float
    verdict: Verdict
    sentence: str

    @property
    def difference(self) -> float:
        """Candidate minus rival."""
        return self.candidate - self.rival


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to promote the candidate, and the reason in one sentence."""

    promoted: bool
    reason: str


def decide(candidate: ModelMeasurements, rival: ModelMeasurements) -> Decision:
    """Promote a candidate that is significantly better on at least one measure and significantly worse on none.

    A rival that was measured on other prompts or pairs cannot be compared, and the candidate is not promoted.
    """
    if mismatch := first_mismatch(candidate, rival):
        return Decision(
            False,
            f"{candidate.name} is not promoted: {rival.name} was measured on other {mismatch}, so the two cannot be"
            f" compared until both are evaluated on the same.",
        )
    comparisons = compare_measures(candidate, rival)
    verdicts = {comparison.verdict for comparison in comparisons}
    sentences = ", and ".join(comparison.sentence for comparison in comparisons)
    if "worse" in verdicts:
        return Decision(
            False, f"{candidate.name} is not promoted, being worse than {rival.name} on one measure: it {sentences}."
        )
    if "better" not in verdicts:
        return Decision(
            False, f"{candidate.name} is not promoted for want of evidence against {rival.name}: it {sentences}."
        )
    return Decision(True, f"{candidate.name} is promoted over {rival.name}: it {sentences}.")


def compare_measures(candidate: ModelMeasurements, rival: ModelMeasurements) -> list[MeasureComparison]:
    """Compare the two models on every available measure."""
    prompts = [compare_prompt_strict_acc(candidate, rival)] if candidate.followed else []
    return [*prompts, compare_test_accuracy(candidate, rival)]


def first_mismatch(candidate: ModelMeasurements, rival: ModelMeasurements) -> str | None:
    """Return what the two measurements do not share (prompts, settings or held-out pairs), or None."""
    if candidate.prompts_fingerprint != rival.prompts_fingerprint:
        return "prompts"
    if differences := describe_setting_differences(candidate.asked, rival.asked):
        return f"terms ({differences})"
    return "held-out pairs" if candidate.pairs_fingerprint != rival.pairs_fingerprint else None


def describe_setting_differences(candidate: Mapping[str, str], rival: Mapping[str, str]) -> str:
    """Describe the settings in which two evaluations differ; a setting that the rival lacks is skipped."""
    names = [name for name in candidate if candidate[name] != rival.get(name, candidate[name])]
    return ", ".join(f"{name} {candidate[name]} here and {rival[name]} there" for name in names)


def compare_prompt_strict_acc(candidate: ModelMeasurements, rival: ModelMeasurements) -> MeasureComparison:
    """Compare the proportions of prompts followed strictly, paired by prompt, with the exact McNemar test.

    The interval is Agresti and Min's (Statistics in Medicine 24, 2005): Wald's with ½ added to each of the four cells.
    """
    keys = candidate.followed.keys() & rival.followed.keys()
    gained = sum(candidate.followed[key] and not rival.followed[key] for key in keys)
    lost = sum(rival.followed[key] and not candidate.followed[key] for key in keys)
    both = sum(rival.followed[key] and candidate.followed[key] for key in keys)
    n, more, fewer = len(keys) + 2, gained + 0.5, lost + 0.5
    center, spread = (more - fewer) / n, Z_95 * sqrt(more + fewer - (more - fewer) ** 2 / n) / n
    p = mcnemar(gained, lost)
    ours, theirs = fraction(both + gained, len(keys)), fraction(both + lost, len(keys))
    bounds = (max(-1.0, center - spread), min(1.0, center + spread))
    evidence = f"{format_points(ours - theirs, *bounds)}, p = {p:.2g}"
    sentence = f"follows {ours:.1%} of {len(keys)} prompts against {theirs:.1%} ({evidence})"
    return MeasureComparison(ours, theirs, *bounds, verdict(gained - lost, p < ALPHA), sentence)


def compare_test_accuracy(candidate: ModelMeasurements, rival: ModelMeasurements) -> MeasureComparison:
    """Compare held-out accuracies; the difference has Newcombe's interval (Stat. in Medicine 17, 1998, method 10).

    The interval treats the two as independent, which is conservative for the same pairs.

    Exporting weights in fewer bits moves margins by rounding, which is no preference. A difference is therefore
    significant only if it is significant twice, in the same direction: as measured, and when pairs whose margin is
    within 1.96 ``margin_noise`` of each model count as ties. This can only remove significance: with noise far below
    the margins both agree, and with noise above them all pairs are ties and the verdict is even.
    """
    ours, theirs = candidate.accuracy, rival.accuracy
    low, high = newcombe_interval(candidate.accuracy_interval, rival.accuracy_interval)
    low_beyond_noise, high_beyond_noise = interval_beyond_noise(candidate, rival)
    significant = (low > 0 and low_beyond_noise > 0) or (high < 0 and high_beyond_noise < 0)
    interval = f"95% interval {candidate.accuracy_low:.1%} to {candidate.accuracy_high:.1%}"
    sentence = (
        f"prefers the chosen side in {ours:.1%} of {candidate.num_pairs} held-out pairs ({interval})"
        f" against {theirs:.1%} ({format_points(ours - theirs, low, high)}){noise_clause(candidate, rival)}"
    )
    return MeasureComparison(ours, theirs, low, high, verdict(ours - theirs, significant), sentence)


def accuracy_beyond_noise(metrics: Mapping[str, float]) -> tuple[float, float, float] | None:
    """Return an evaluation's accuracy beyond the export's noise and its bounds, None for a model without noise."""
    name = "test/accuracy_beyond_noise"
    return (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]) if name in metrics else None


def newcombe_interval(ours: Proportion, theirs: Proportion) -> tuple[float, float]:
    """Return the bounds of the 95 % interval of ``ours - theirs``, from their Wilson intervals."""
    difference = ours.value - theirs.value
    low = difference - hypot(ours.value - ours.low, theirs.high - theirs.value)
    return low, difference + hypot(ours.high - ours.value, theirs.value - theirs.low)


def interval_beyond_noise(candidate: ModelMeasurements, rival: ModelMeasurements) -> tuple[float, float]:
    """Return the interval of the accuracies' difference when pairs within the export's noise count as ties."""
    return newcombe_interval(candidate.accuracy_interval_beyond_noise, rival.accuracy_interval_beyond_noise)


def noise_clause(candidate: ModelMeasurements, rival: ModelMeasurements) -> str:
    """Return the clause about the difference beyond the export's noise, empty when neither model has noise."""
    noise = Z_95 * max(candidate.margin_noise, rival.margin_noise)
    if noise == 0:
        return ""
    ours, theirs = candidate.accuracy_interval_beyond_noise.value, rival.accuracy_interval_beyond_noise.value
    difference = format_points(ours - theirs, *interval_beyond_noise(candidate, rival))
    return (
        f"; with margins within the export's noise of {noise:.2g} nats as ties,"
        f" {ours:.1%} against {theirs:.1%} ({difference})"
    )


def fraction(part: int, total: int) -> float:
    """Return ``part / total``, 0 when ``total`` is 0."""
    return part / total if total else 0.0


def verdict(difference: float, significant: bool) -> Verdict:
    """Return the verdict on a difference; an insignificant one is even."""
    if not significant:
        return "even"
    return "better" if difference > 0 else "worse"


def format_points(difference: float, low: float, high: float) -> str:
    """Format a difference of proportions and its 95 % interval in percentage points."""
    return f"{100 * difference:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
