"""Promotion gates: the verdict of each, and the decision."""

import re

import pytest

from dpo_core.config.recipe import PromoteSettings
from flows.registry.gates import gate_report
from tests.flows.registry.test_promotion_rule import BAD, BASE, GOOD, measured, noisy

BETTER = measured("version 2", GOOD, 0.9)


def verdicts(candidate=BETTER, champion=None, base=BASE, **rule):  # type: ignore[no-untyped-def]
    report = gate_report(candidate, champion, base, PromoteSettings(**rule))
    return report, {gate.name: gate.passed for gate in report.gates}


def test_without_minima_the_evidence_decides() -> None:
    report, gates = verdicts()
    assert gates == {"against_champion": True, "export_rescored": True}
    assert report.promoted
    assert report.reason.startswith("version 2 is promoted over its base: it follows 90.0% of 200 prompts")


@pytest.mark.parametrize(
    ("rule", "name", "found"),
    [
        ({"min_prompt_strict_acc": 0.95}, "minimum_prompt_strict_acc", "prompts followed are 0.900"),
        ({"min_test_accuracy": 0.95}, "minimum_test_accuracy", "held-out accuracy is 0.900"),
    ],
)
def test_a_minimum_prevents_the_promotion_of_a_better_candidate(rule: dict[str, float], name: str, found: str) -> None:
    report, gates = verdicts(**rule)
    assert (report.promoted, gates[name], gates["against_champion"]) == (False, False, True)
    assert report.reason.startswith(f"version 2 is not promoted: {found}, min_")
    assert "=0.95" in report.reason


def test_a_minimum_that_is_met_exactly_passes() -> None:
    _, gates = verdicts(min_prompt_strict_acc=0.9, min_test_accuracy=0.9)
    assert all(gates.values())


def test_a_minimum_is_not_met_within_the_exports_noise() -> None:
    report, gates = verdicts(noisy("version 2", 0.636, 0.5, noise=0.1), min_test_accuracy=0.6)
    assert not gates["minimum_test_accuracy"]
    sentence = "held-out accuracy is 0.636 (0.500 with margins within the export's noise of 0.2 nats as ties), min_"
    assert sentence in report.reason


def test_a_minimum_of_prompts_is_not_met_without_prompts() -> None:
    _, gates = verdicts(measured("version 2", "", 0.9), base=measured("its base", "", 0.5), min_prompt_strict_acc=0.0)
    assert not gates["minimum_prompt_strict_acc"]


def test_an_equal_candidate_passes_only_if_improvement_is_not_required() -> None:
    twin = measured("version 1", GOOD, 0.9)
    assert not verdicts(champion=twin)[0].promoted
    report, _ = verdicts(champion=twin, require_improvement=False)
    assert report.promoted
    assert "is promoted over version 1, not being worse (require_improvement=false): it follows" in report.reason


def test_a_worse_candidate_never_passes() -> None:
    report, gates = verdicts(measured("version 2", BAD, 0.9), BETTER, require_improvement=False)
    assert (report.promoted, gates["against_champion"]) == (False, False)
    assert "version 2 is not promoted, being worse than version 2" in report.reason


@pytest.mark.parametrize("improvement", [True, False])
def test_other_prompts_cannot_be_compared_whatever_the_rule(improvement: bool) -> None:
    other = measured("version 1", GOOD, 0.5, prompts="x")
    report, gates = verdicts(champion=other, require_improvement=improvement)
    assert (report.promoted, gates["against_champion"]) == (False, False)


def test_a_candidate_without_a_rival_is_not_promoted() -> None:
    report, gates = verdicts(base=None)
    assert (report.promoted, gates["against_champion"]) == (False, False)
    assert "its base's measurements are missing" in report.reason


def test_every_gate_has_a_tag_with_its_verdict() -> None:
    tags = verdicts(min_test_accuracy=0.95)[0].tags()
    assert tags["dpo.gate.minimum_test_accuracy"] == "failed: held-out accuracy is 0.900, min_test_accuracy=0.95."
    assert tags["dpo.gate.against_champion"].startswith("passed: version 2 is promoted over its base")
    assert re.match("passed: the weights were read back", tags["dpo.gate.export_rescored"])
