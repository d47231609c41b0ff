"""Two models on the same prompts: the statistics, by hand and by drawing."""

import numpy as np
import pytest

from dpo_core.evaluate.paired_tests import bootstrap, compare_paired


def marks(text: str) -> dict[str, float]:
    return {str(place): float(mark) for place, mark in enumerate(text)}


def test_what_flipped_decides() -> None:
    """Seven better, one worse, of twelve: McNemar's exact p is 2 (1 + 8) / 2^8."""
    told = compare_paired(marks("111111110011"), marks("000000011011"))
    assert (told.prompts, told.ours, told.theirs) == (12, 10 / 12, 4 / 12)
    assert (told.gained, told.lost) == (tuple("0123456"), ("8",))
    assert told.p == pytest.approx(2 * 9 / 256)
    assert told.low < told.difference < told.high


def test_only_prompts_of_both_count_in_any_order() -> None:
    told = compare_paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"c": 0.0, "b": 0.0, "d": 1.0})
    assert (told.prompts, told.gained, told.lost) == (2, ("c",), ())
    with pytest.raises(ValueError, match="in common"):
        compare_paired({"a": 1.0}, {"b": 1.0})


def test_sums_are_shares_of_what_they_sum() -> None:
    told = compare_paired({"a": 2.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0})
    assert (told.ours, told.theirs, told.difference) == (0.5, 0.5, 0)


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """300 experiments of 80 prompts whose true difference is 0.2."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        differences = rng.choice([1.0, 0.0, -1.0], size=80, p=[0.4, 0.4, 0.2])
        low, high = bootstrap(differences, np.ones(80), seed=int(rng.integers(1 << 30)))
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_the_same_answers_are_no_difference() -> None:
    told = compare_paired(marks("0110"), marks("0110"))
    assert (told.difference, told.low, told.high, told.p) == (0, 0, 0, 1)
