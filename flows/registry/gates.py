"""Promotion gates: the conditions that a candidate must pass to become the champion, each with verdict and reason."""

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_core.config.recipe import PromoteSettings
from dpo_core.wilson import Z_95
from flows.registry.promotion_rule import (
    Decision,
    ModelMeasurements,
    compare_measures,
    decide,
    first_mismatch,
    fraction,
)

GATE_TAG = "dpo.gate."
PASSED, FAILED = "passed", "failed"
FORCED = "forced"


@dataclass(frozen=True, slots=True)
class Gate:
    """The verdict of one gate; ``reason`` is a sentence with the numbers."""

    name: str
    passed: bool
    reason: str

    def __str__(self) -> str:
        return f"{PASSED if self.passed else FAILED}: {self.reason}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdicts of all gates, the decision, and its reason in one sentence."""

    promoted: bool
    reason: str
    gates: tuple[Gate, ...]

    def tags(self) -> dict[str, str]:
        """Return one tag of a version per gate."""
        return {f"{GATE_TAG}{gate.name}": str(gate) for gate in self.gates}


def gate_report(
    candidate: ModelMeasurements,
    champion: ModelMeasurements | None,
    base: ModelMeasurements | None,
    settings: PromoteSettings,
) -> GateReport:
    """Apply every gate to a candidate.

    The rival is the champion or, for a first version, the candidate's own base.
    """
    rival = champion or base
    evidence = decide(candidate, rival) if rival else no_rival(candidate)
    gates = (*minimum_gates(candidate, settings), champion_gate(candidate, rival, settings), export_gate(candidate))
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return GateReport(
            True, evidence.reason if evidence.promoted else not_worse_reason(candidate, rival, evidence), gates
        )
    below = "; ".join(gate.reason.rstrip(".") for gate in failed if gate.name.startswith("minimum"))
    if below:
        return GateReport(False, f"{candidate.name} is not promoted: {below}.", gates)
    return GateReport(False, evidence.reason, gates)


def minimum_gates(candidate: ModelMeasurements, settings: PromoteSettings) -> Iterator[Gate]:
    """Yield the gates on absolute minima; a minimum that is not set has no gate."""
    if settings.min_prompt_strict_acc is not None:
        yield prompt_strict_acc_gate(candidate, settings.min_prompt_strict_acc)
    if settings.min_test_accuracy is not None:
        yield test_accuracy_gate(candidate, settings.min_test_accuracy)


def test_accuracy_gate(candidate: ModelMeasurements, minimum: float) -> Gate:
    """Held-out accuracy reaches the minimum, both as measured and with pairs within the export's noise as ties."""
    beyond_noise, reason = (
        candidate.accuracy_interval_beyond_noise.value,
        f"held-out accuracy is {candidate.accuracy:.3f}",
    )
    if candidate.beyond_noise:
        noise = Z_95 * candidate.margin_noise
        reason += f" ({beyond_noise:.3f} with margins within the export's noise of {noise:.2g} nats as ties)"
    passed = min(candidate.accuracy, beyond_noise) >= minimum
    return Gate("minimum_test_accuracy", passed, f"{reason}, min_test_accuracy={minimum:g}.")


def prompt_strict_acc_gate(candidate: ModelMeasurements, minimum: float) -> Gate:
    """The fraction of prompts followed strictly reaches the minimum; a candidate without prompts fails."""
    name = "minimum_prompt_strict_acc"
    if not candidate.followed:
        return Gate(name, False, f"no prompt was evaluated, min_prompt_strict_acc={minimum:g}.")
    accuracy = fraction(sum(candidate.followed.values()), len(candidate.followed))
    return Gate(name, accuracy >= minimum, f"prompts followed are {accuracy:.3f}, min_prompt_strict_acc={minimum:g}.")


def champion_gate(candidate: ModelMeasurements, rival: ModelMeasurements | None, settings: PromoteSettings) -> Gate:
    """The candidate is better than the rival on one measure and worse on none.

    Without ``require_improvement``, worse on none is enough.
    """
    if rival is None:
        return Gate("against_champion", False, no_rival(candidate).reason)
    if settings.require_improvement or first_mismatch(candidate, rival):
        decision = decide(candidate, rival)
        return Gate("against_champion", decision.promoted, decision.reason)
    comparisons = compare_measures(candidate, rival)
    worse = any(comparison.verdict == "worse" for comparison in comparisons)
    sentences = ", and ".join(comparison.sentence for comparison in comparisons)
    return Gate("against_champion", not worse, f"{candidate.name} against {rival.name} {sentences}.")


def not_worse_reason(candidate: ModelMeasurements, rival: ModelMeasurements | None, evidence: Decision) -> str:
    """Return the reason for promoting a candidate that is not better than its rival."""
    sentences = evidence.reason.partition(": it ")[2]
    name = rival.name if rival else "nothing"
    return f"{candidate.name} is promoted over {name}, not being worse (require_improvement=false): it {sentences}"


def no_rival(candidate: ModelMeasurements) -> Decision:
    """Return the decision on a candidate without a rival."""
    reason = f"{candidate.name} is not promoted: there is no champion, and its base's measurements are missing."
    return Decision(False, reason)


def export_gate(candidate: ModelMeasurements) -> Gate:
    """The export passed its checks; training fails otherwise, so a registered version always passes this gate."""
    reason = (
        "the weights were read back from the disk, every tensor as it was written, and merging changed scores by less"
        " than 1e-3 nats a token in float32; training fails otherwise; exporting moved held-out margins by"
        f" {candidate.margin_noise:.2g} nats (root mean square)."
    )
    return Gate("export_rescored", True, reason)
