"""The rule by which a candidate becomes the champion: two sets of measurements in, a decision and its reason out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt
from typing import Literal, NamedTuple

from dpo_core.evaluate.paired_tests import mcnemar
from dpo_core.wilson import Z_95

ALPHA = 0.05

Verdict = Literal["better", "worse", "even"]


class Share(NamedTuple):
    """A share, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelMeasurements:
    """What is known of one model. ``name`` is how a sentence calls it ("version 3", "its base").

    ``followed``: for each prompt's key, whether every instruction was strictly followed; empty when none was asked.
    ``accuracy``: share of ``num_pairs`` held-out pairs of which it prefers the chosen side, ties counting ½, and the
    bounds of its 95 % Wilson interval.
    ``margin_noise``: how far exporting moved its margins, root mean square in nats. ``beyond_noise``: the accuracy and
    its bounds with the pairs as ties whose margin is within 1.96 of that (None: without noise, as a base is).
    The fingerprints say which prompts and pairs these were. ``asked``: what else decides what an answer counts, the
    task's version and the settings of :data:`flows.registry.logged_model.TERMS`; empty where no prompt was asked or it
    is not known.
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
    def share(self) -> Share:
        """The accuracy with its interval."""
        return Share(self.accuracy, self.accuracy_low, self.accuracy_high)

    @property
    def certain(self) -> Share:
        """The same, pairs within the export's noise counting as ties."""
        return Share(*self.beyond_noise) if self.beyond_noise else self.share


@dataclass(frozen=True, slots=True)
class MeasureComparison:
    """Candidate against rival on one measure: shares, their difference with its 95 % interval, and what it amounts to.

    ``sentence`` says it in words, with the numbers.
    """

    candidate: float
    rival: float
    low: float
    high: float
    verdict: Verdict
    sentence: str

    @property
    def difference(self) -> float:
        """How much greater the candidate's share is."""
        return self.candidate - self.rival


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the evidence is for the candidate, and the one sentence that says why."""

    promoted: bool
    reason: str


def decide(candidate: ModelMeasurements, rival: ModelMeasurements) -> Decision:
    """Promote on evidence only: better on one measure at least, significantly worse on none.

    A rival that was measured on other prompts or other pairs cannot be compared with, and stays.
    """
    if other := differing(candidate, rival):
        return Decision(
            False,
            f"{candidate.name} is not promoted: {rival.name} was measured on other {other}, so the two cannot be"
            f" compared until both are evaluated on the same.",
        )
    comparisons = compared(candidate, rival)
    verdicts = {comparison.verdict for comparison in comparisons}
    told = ", and ".join(comparison.sentence for comparison in comparisons)
    if "worse" in verdicts:
        return Decision(
            False, f"{candidate.name} is not promoted, being worse than {rival.name} on one measure: it {told}."
        )
    if "better" not in verdicts:
        return Decision(
            False, f"{candidate.name} is not promoted for want of evidence against {rival.name}: it {told}."
        )
    return Decision(True, f"{candidate.name} is promoted over {rival.name}: it {told}.")


def compared(candidate: ModelMeasurements, rival: ModelMeasurements) -> list[MeasureComparison]:
    """The two on every measure that there is."""
    asked = [follows(candidate, rival)] if candidate.followed else []
    return [*asked, prefers(candidate, rival)]


def differing(candidate: ModelMeasurements, rival: ModelMeasurements) -> str | None:
    """What the two were not both measured on, or None."""
    if candidate.prompts_fingerprint != rival.prompts_fingerprint:
        return "prompts"
    if terms := other_terms(candidate.asked, rival.asked):
        return f"terms ({terms})"
    return "held-out pairs" if candidate.pairs_fingerprint != rival.pairs_fingerprint else None


def other_terms(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """How prompts were asked otherwise, in words; nothing where either does not say."""
    names = [name for name in ours if ours[name] != theirs.get(name, ours[name])]
    return ", ".join(f"{name} {ours[name]} here and {theirs[name]} there" for name in names)


def follows(candidate: ModelMeasurements, rival: ModelMeasurements) -> MeasureComparison:
    """Prompts followed strictly, paired: what one model follows and the other does not decides (exact McNemar test).

    The interval is Agresti and Min's (Statistics in Medicine 24, 2005): Wald's with ½ added to each of the four cells.
    """
    keys = candidate.followed.keys() & rival.followed.keys()
    gained = sum(candidate.followed[key] and not rival.followed[key] for key in keys)
    lost = sum(rival.followed[key] and not candidate.followed[key] for key in keys)
    both = sum(rival.followed[key] and candidate.followed[key] for key in keys)
    n, more, fewer = len(keys) + 2, gained + 0.5, lost + 0.5
    centre, spread = (more - fewer) / n, Z_95 * sqrt(more + fewer - (more - fewer) ** 2 / n) / n
    p = mcnemar(gained, lost)
    ours, theirs = share(both + gained, len(keys)), share(both + lost, len(keys))
    bounds = (max(-1.0, centre - spread), min(1.0, centre + spread))
    evidence = f"{points(ours - theirs, *bounds)}, p = {p:.2g}"
    told = f"follows {ours:.1%} of {len(keys)} prompts against {theirs:.1%} ({evidence})"
    return MeasureComparison(ours, theirs, *bounds, verdict(gained - lost, p < ALPHA), told)


def prefers(candidate: ModelMeasurements, rival: ModelMeasurements) -> MeasureComparison:
    """Held-out preference accuracy; the difference has Newcombe's interval (Stat. in Medicine 17, 1998, method 10).

    It takes the two as independent; on the same pairs that is on the careful side.

    Writing weights in fewer bits moves margins by rounding, which prefers nothing. So a difference counts only if it is
    significant twice, in the same direction: as measured, and with every pair as a tie whose margin is within what
    exporting explains, 1.96 of its root mean square for each model. That can only take significance away: where the
    noise is far below the margins the two agree, and where it is above them all pairs are ties and nothing is shown.
    """
    ours, theirs = candidate.accuracy, rival.accuracy
    low, high = newcombe(candidate.share, rival.share)
    certain = newcombe(candidate.certain, rival.certain)
    counts = (low > 0 and certain[0] > 0) or (high < 0 and certain[1] < 0)
    interval = f"95% interval {candidate.accuracy_low:.1%} to {candidate.accuracy_high:.1%}"
    told = (
        f"prefers the chosen side in {ours:.1%} of {candidate.num_pairs} held-out pairs ({interval})"
        f" against {theirs:.1%} ({points(ours - theirs, low, high)}){within(candidate, rival)}"
    )
    return MeasureComparison(ours, theirs, low, high, verdict(ours - theirs, counts), told)


def beyond_noise(metrics: Mapping[str, float]) -> tuple[float, float, float] | None:
    """An evaluation's accuracy beyond its export's noise, with its bounds; None of a model without noise."""
    name = "test/accuracy_beyond_noise"
    return (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]) if name in metrics else None


def newcombe(ours: Share, theirs: Share) -> tuple[float, float]:
    """The 95 % interval of ours less theirs, from their Wilson intervals."""
    difference = ours.value - theirs.value
    low = difference - hypot(ours.value - ours.low, theirs.high - theirs.value)
    return low, difference + hypot(ours.high - ours.value, theirs.value - theirs.low)


def within(candidate: ModelMeasurements, rival: ModelMeasurements) -> str:
    """What is left of a difference beyond the export's noise, in words; empty where neither has any."""
    noise = Z_95 * max(candidate.margin_noise, rival.margin_noise)
    if noise == 0:
        return ""
    ours, theirs = candidate.certain.value, rival.certain.value
    left = points(ours - theirs, *newcombe(candidate.certain, rival.certain))
    return (
        f"; with margins within the export's noise of {noise:.2g} nats as ties,"
        f" {ours:.1%} against {theirs:.1%} ({left})"
    )


def share(part: int, whole: int) -> float:
    """A share, 0 of nothing."""
    return part / whole if whole else 0.0


def verdict(difference: float, significant: bool) -> Verdict:
    """A difference in words; one that may be chance is none."""
    if not significant:
        return "even"
    return "better" if difference > 0 else "worse"


def points(difference: float, low: float, high: float) -> str:
    """A difference of shares with its 95 % interval, in percentage points."""
    return f"{100 * difference:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
