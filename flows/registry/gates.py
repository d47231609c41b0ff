"""The gates between a candidate and the champion's alias: each with its verdict and its reason, passed or failed."""

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_core.config.recipe import PromoteSettings
from dpo_core.wilson import Z_95
from flows.registry.promotion_rule import Decision, ModelMeasurements, compared, decide, differing, share

TAG = "dpo.gate."
PASSED, FAILED = "passed", "failed"
FORCED = "forced"


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a promotion. ``reason`` is a sentence with the numbers."""

    name: str
    passed: bool
    reason: str

    def __str__(self) -> str:
        return f"{PASSED if self.passed else FAILED}: {self.reason}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """All gates' verdicts, and the one sentence that says what they come to."""

    promoted: bool
    reason: str
    gates: tuple[Gate, ...]

    def tags(self) -> dict[str, str]:
        """The gates as tags of a version."""
        return {f"{TAG}{gate.name}": str(gate) for gate in self.gates}


def judge(
    candidate: ModelMeasurements,
    champion: ModelMeasurements | None,
    base: ModelMeasurements | None,
    rule: PromoteSettings,
) -> GateReport:
    """Every gate of a candidate. The rival is the champion or, for a first version, the candidate's own base."""
    rival = champion or base
    evidence = decide(candidate, rival) if rival else unknown(candidate)
    gates = (*minima(candidate, rule), against(candidate, rival, rule), exported(candidate))
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return GateReport(True, evidence.reason if evidence.promoted else lenient(candidate, rival, evidence), gates)
    below = "; ".join(gate.reason.rstrip(".") for gate in failed if gate.name.startswith("minimum"))
    if below:
        return GateReport(False, f"{candidate.name} is not promoted: {below}.", gates)
    return GateReport(False, evidence.reason, gates)


def minima(candidate: ModelMeasurements, rule: PromoteSettings) -> Iterator[Gate]:
    """The gates that look at the candidate alone; those that are not set are left out."""
    if rule.min_prompt_strict_acc is not None:
        yield followed(candidate, rule.min_prompt_strict_acc)
    if (least := rule.min_test_accuracy) is not None:
        yield preferred(candidate, least)


def preferred(candidate: ModelMeasurements, least: float) -> Gate:
    """Held-out accuracy, as measured and with pairs within the export's noise as ties: both reach the minimum."""
    certain, told = candidate.certain.value, f"held-out accuracy is {candidate.accuracy:.3f}"
    if candidate.beyond_noise:
        noise = Z_95 * candidate.margin_noise
        told += f" ({certain:.3f} with margins within the export's noise of {noise:.2g} nats as ties)"
    reached = min(candidate.accuracy, certain) >= least
    return Gate("minimum_test_accuracy", reached, f"{told}, min_test_accuracy={least:g}.")


def followed(candidate: ModelMeasurements, least: float) -> Gate:
    """Prompts followed strictly; a candidate that was asked none has not shown it."""
    name = "minimum_prompt_strict_acc"
    if not candidate.followed:
        return Gate(name, False, f"no prompt was asked, min_prompt_strict_acc={least:g}.")
    found = share(sum(candidate.followed.values()), len(candidate.followed))
    return Gate(name, found >= least, f"prompts followed are {found:.3f}, min_prompt_strict_acc={least:g}.")


def against(candidate: ModelMeasurements, rival: ModelMeasurements | None, rule: PromoteSettings) -> Gate:
    """Better than the rival on one measure and worse on none; without ``require_improvement``, worse on none."""
    if rival is None:
        return Gate("against_champion", False, unknown(candidate).reason)
    if rule.require_improvement or differing(candidate, rival):
        decision = decide(candidate, rival)
        return Gate("against_champion", decision.promoted, decision.reason)
    comparisons = compared(candidate, rival)
    worse = any(one.verdict == "worse" for one in comparisons)
    told = ", and ".join(one.sentence for one in comparisons)
    return Gate("against_champion", not worse, f"{candidate.name} against {rival.name} {told}.")


def lenient(candidate: ModelMeasurements, rival: ModelMeasurements | None, evidence: Decision) -> str:
    """Why a version that is not better is promoted."""
    told = evidence.reason.partition(": it ")[2]
    name = rival.name if rival else "nothing"
    return f"{candidate.name} is promoted over {name}, not being worse (require_improvement=false): it {told}"


def unknown(candidate: ModelMeasurements) -> Decision:
    """The decision when there is nothing to compare with."""
    told = f"{candidate.name} is not promoted: there is no champion, and what its base measured is not known."
    return Decision(False, told)


def exported(candidate: ModelMeasurements) -> Gate:
    """What training has seen to: it fails where the export is not what was trained."""
    told = (
        "the weights were read back from the disk, every tensor as it was written, and merging changed scores by less"
        " than 1e-3 nats a token in float32; training fails otherwise; exporting moved held-out margins by"
        f" {candidate.margin_noise:.2g} nats (root mean square)."
    )
    return Gate("export_rescored", True, told)
