"""Accuracy and length: a preference for longer answers alone is told from a preference."""

import numpy as np
import pytest

from dpo_core.train.length_bias import (
    Values,
    decile_metrics,
    length_controlled_accuracy,
    length_metrics,
    logistic_regression,
)

RNG = np.random.default_rng(0)


def drawn(intercept: float, slope: float, count: int = 40_000) -> tuple[Values, Values]:
    """Wins and length differences of a model with these coefficients."""
    difference = RNG.normal(10, 30, count).round()
    scaled = np.tanh(difference / difference.std())
    won = RNG.random(count) < 1 / (1 + np.exp(-(intercept + slope * scaled)))
    return won.astype(np.float64), difference


def test_a_preference_for_length_alone_is_an_accuracy_of_a_half() -> None:
    won, difference = drawn(0.0, 2.0)
    assert won.mean() > 0.58
    assert length_controlled_accuracy(won, difference) == pytest.approx(0.5, abs=0.02)


def test_a_preference_that_ignores_length_stays_as_it_is() -> None:
    won, difference = drawn(1.0, 0.0)
    assert length_controlled_accuracy(won, difference) == pytest.approx(won.mean(), abs=0.01)


def test_the_regression_is_stationary_at_its_answer() -> None:
    """The penalised likelihood's gradient, by the formula; ties count as halves."""
    features = np.stack([np.ones(50), RNG.normal(size=50)], axis=1)
    targets = RNG.choice([0.0, 0.5, 1.0], 50)
    weights = logistic_regression(features, targets)
    shares = 1 / (1 + np.exp(-features @ weights))
    assert features.T @ (targets - shares) == pytest.approx(0.5 * weights, abs=1e-8)


@pytest.mark.parametrize("won", [0.0, 0.5, 1.0])
def test_extremes_stay_finite(won: float) -> None:
    """All pairs won, lost or tied, with sides of one length or not."""
    for difference in (np.zeros(20), np.arange(20.0)):
        controlled = length_controlled_accuracy(np.full(20, won), difference)
        assert 0 < controlled < 1
        assert (controlled > 0.5, controlled < 0.5) == (won == 1, won == 0)


def test_pairs_are_split_by_which_side_is_longer() -> None:
    won, margins = np.array([1.0, 0.0, 1.0, 0.5]), np.array([1.0, -1.0, 2.0, 0.0])
    told = length_metrics(won, margins, np.array([5.0, 9, 2, 4]), np.array([3.0, 1, 6, 4]))
    assert (told["test/chosen_length"], told["test/rejected_length"]) == (5, 3.5)
    assert (told["test/longer_chosen"], told["test/accuracy_longer_chosen"]) == (0.5, 0.5)
    assert told["test/accuracy_shorter_chosen"] == 1
    assert told["test/margin_length_correlation"] == pytest.approx(np.corrcoef(margins, [2, 8, -4, 0])[0, 1])
    assert not any(name.startswith("length/") for name in told)


def test_deciles_go_from_short_to_long() -> None:
    lengths = np.arange(40.0)[::-1]
    told = decile_metrics((lengths >= 20).astype(float), lengths, lengths)
    assert [told[f"length/tokens_{place}"] for place in range(1, 11)] == [1.5 + 4 * place for place in range(10)]
    assert [told[f"length/accuracy_{place}"] for place in range(1, 11)] == [0] * 5 + [1] * 5
