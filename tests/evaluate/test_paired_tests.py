"""Paired tests: hand-worked values, and coverage of the interval by simulation."""

import numpy as np
import pytest

from dpo_core.evaluate.paired_tests import bootstrap, compare_paired


def scores(text: str) -> dict[str, float]:
    return {str(index): float(score) for index, score in enumerate(text)}


def test_p_value_of_flipped_prompts() -> None:
    """Seven better, one worse, of twelve: McNemar's exact p is 2 (1 + 8) / 2^8."""
    paired = compare_paired(scores("111111110011"), scores("000000011011"))
    assert (paired.prompts, paired.first, paired.second) == (12, 10 / 12, 4 / 12)
    assert (paired.gained, paired.lost) == (tuple("0123456"), ("8",))
    assert paired.p == pytest.approx(2 * 9 / 256)
    assert paired.low < paired.difference < paired.high


def test_only_common_prompts_count() -> None:
    paired = compare_paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"c": 0.0, "b": 0.0, "d": 1.0})
    assert (paired.prompts, paired.gained, paired.lost) == (2, ("c",), ())
    with pytest.raises(ValueError, match="in common"):
        compare_paired({"a": 1.0}, {"b": 1.0})


def test_sums_are_divided_by_their_sizes() -> None:
    paired = compare_paired({"a": 2.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0})
    assert (paired.first, paired.second, paired.difference) == (0.5, 0.5, 0)


@pytest.mark.slow
def test_the_interval_has_its_nominal_coverage() -> None:
    """300 experiments of 80 prompts whose true difference is 0.2."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        differences = rng.choice([1.0, 0.0, -1.0], size=80, p=[0.4, 0.4, 0.2])
        low, high = bootstrap(differences, np.ones(80), seed=int(rng.integers(1 << 30)))
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_equal_scores_have_no_difference() -> None:
    paired = compare_paired(scores("0110"), scores("0110"))
    assert (paired.difference, paired.low, paired.high, paired.p) == (0, 0, 0, 1)
