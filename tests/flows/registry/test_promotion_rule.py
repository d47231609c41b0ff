"""Promotion rule, on numbers worked by hand and on cases with only one right decision."""

import re
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.registry.logged_model import measurements
from flows.registry.promotion_rule import (
    ModelMeasurements,
    compare_prompt_strict_acc,
    compare_test_accuracy,
    decide,
    mcnemar,
)
from tests.flows.fake import evaluation

Z = 1.959964


def measured(name: str, followed: str, accuracy: float, num_pairs: int = 1000, **other: str) -> ModelMeasurements:
    """A model that follows the prompts marked 1."""
    marks = {str(key): mark == "1" for key, mark in enumerate(followed)}
    low, high = wilson(accuracy, num_pairs)
    asked = {"IFEval": "1", "max_new_tokens": other.get("tokens", "96")}
    on = other.get("prompts", "p"), marks, other.get("pairs", "q")
    return ModelMeasurements(name, *on, accuracy, low, high, num_pairs, asked)


def wilson(share: float, count: int) -> tuple[float, float]:
    """As the held-out evaluation reports it."""
    scale, half = 1 + Z**2 / count, Z * sqrt(share * (1 - share) / count + (Z / 2 / count) ** 2)
    return (share + Z**2 / 2 / count - half) / scale, (share + Z**2 / 2 / count + half) / scale


GOOD, BAD = "1" * 180 + "0" * 20, "1" * 80 + "0" * 120
BASE = measured("its base", BAD, 0.5)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (0, 6, 2 / 64), (9, 1, 22 / 1024)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_newcombe_difference_as_in_his_table_two() -> None:
    # 56/70 against 48/80: +0.2, method 10 gives 0.0524 to 0.3339.
    comparison = compare_test_accuracy(measured("a", "", 56 / 70, 70), measured("b", "", 48 / 80, 80))
    assert (comparison.low, comparison.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_paired_interval_by_hand() -> None:
    # 10 prompts: 4 gained, 1 lost. With ½ a cell: (4.5 - 1.5)/12 ± 1.96 sqrt(6 - 9/12)/12.
    comparison = compare_prompt_strict_acc(measured("a", "1111100011", 0.5), measured("b", "0000110011", 0.5))
    assert comparison.difference == pytest.approx(0.3)
    assert comparison.verdict == "even"
    assert (comparison.low, comparison.high) == pytest.approx((0.25 - 0.374235, 0.25 + 0.374235), abs=1e-5)


def test_the_first_version_is_compared_with_its_base() -> None:
    decision = decide(measured("version 1", GOOD, 0.95), BASE)
    assert decision.promoted
    assert decision.reason.startswith(
        "version 1 is promoted over its base: it follows 90.0% of 200 prompts against 40.0%"
    )


def test_an_equal_candidate_is_not_promoted() -> None:
    decision = decide(measured("version 2", GOOD, 0.95), measured("version 1", GOOD, 0.95))
    assert not decision.promoted
    assert "for want of evidence against version 1" in decision.reason


def test_better_on_one_and_worse_on_the_other_is_refused() -> None:
    decision = decide(measured("version 2", GOOD, 0.80), measured("version 1", BAD, 0.95))
    assert not decision.promoted
    assert "worse than version 1" in decision.reason


def test_better_on_one_and_even_on_the_other_is_promoted() -> None:
    assert decide(measured("version 2", GOOD, 0.944), measured("version 1", BAD, 0.95)).promoted


@pytest.mark.parametrize(
    ("other", "mismatch"),
    [
        ({"prompts": "x"}, "other prompts"),
        ({"pairs": "x"}, "other held-out pairs"),
        ({"tokens": "32"}, "other terms (max_new_tokens 96 here and 32 there)"),
    ],
)
def test_other_measurements_cannot_be_compared(other: dict[str, str], mismatch: str) -> None:
    decision = decide(measured("version 2", GOOD, 0.99), measured("version 1", BAD, 0.5, **other))
    assert not decision.promoted
    assert mismatch in decision.reason


def test_measurements_contain_the_generation_settings(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "first", [True] * 9, 0.9)
    second = evaluation(tmp_path / "second", [True] * 9, 0.9, max_new_tokens="32")
    measured_first, measured_second = (measurements(result, result.path.name) for result in (first, second))
    assert measured_first.asked == {"IFEval": "1", "max_new_tokens": "96", "eval_temperature": "0"}
    assert measured_second.asked == measured_first.asked | {"max_new_tokens": "32"}


def noisy(name: str, accuracy: float, certain: float, noise: float = 0.5) -> ModelMeasurements:
    """A model of which exporting moved the margins; ``certain`` is its accuracy with those within that as ties."""
    interval = (certain, *wilson(certain, 1000))
    return replace(measured(name, "", accuracy), margin_noise=noise, beyond_noise=interval)


@pytest.mark.parametrize(
    ("accuracy", "certain", "verdict"),
    [(0.7, 0.65, "better"), (0.7, 0.5, "even"), (0.7, 0.3, "even"), (0.3, 0.5, "even"), (0.3, 0.35, "worse")],
)
def test_margins_within_the_exports_noise_decide_nothing(accuracy: float, certain: float, verdict: str) -> None:
    candidate, base = noisy("version 1", accuracy, certain), measured("its base", "", 0.5)
    comparison = compare_test_accuracy(candidate, base)
    assert comparison.verdict == verdict
    assert comparison.candidate == accuracy  # the number is what was measured
    assert f"margins within the export's noise of 0.98 nats as ties, {certain:.1%} against 50.0%" in comparison.sentence
    decision = decide(candidate, base)
    assert decision.promoted == (verdict == "better")
    assert "within the export's noise" in decision.reason


def test_a_noisy_champion_is_worse_only_beyond_its_noise() -> None:
    assert compare_test_accuracy(measured("version 2", "", 0.7), noisy("version 1", 0.6, 0.7)).verdict == "even"


def test_the_sentence_mentions_no_noise_without_noise() -> None:
    assert "noise" not in compare_test_accuracy(measured("version 1", "", 0.9), measured("its base", "", 0.5)).sentence


def test_without_prompts_preferences_alone_decide() -> None:
    decision = decide(measured("version 1", "", 0.9), measured("its base", "", 0.5))
    assert decision.promoted
    assert "prompts" not in decision.reason


def test_a_prompt_without_verdict_on_one_side_is_left_out() -> None:
    comparison = compare_prompt_strict_acc(measured("a", "110", 0.5), measured("b", "01", 0.5))
    assert (comparison.candidate, comparison.rival) == (1.0, 0.5)


MARKS = st.text("01", min_size=1, max_size=60)


@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.text("01", min_size=n, max_size=n)] * 2)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_rivals_never_both_win(marks: tuple[str, str], left: float, right: float) -> None:
    a, b = measured("a", marks[0], left), measured("b", marks[1], right)
    assert not (decide(a, b).promoted and decide(b, a).promoted)
    assert not decide(a, a).promoted


@given(MARKS, st.floats(0, 1), st.integers(1, 500))
def test_the_reason_is_one_sentence(marks: str, accuracy: float, num_pairs: int) -> None:
    reason = decide(
        measured("version 2", marks, accuracy, num_pairs), measured("its base", marks, 0.5, num_pairs)
    ).reason
    assert reason.endswith(".")
    assert not re.search(r"\. [A-Z]|\n", reason)
