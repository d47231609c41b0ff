"""What exporting changed, on numbers worked by hand."""

import math

import pytest
import torch

from dpo_core.train.export_noise import accuracy_beyond_noise, export_differences


def test_differences_by_hand() -> None:
    """Two pairs: the first moves by +1 and −1, the second by −3 on both sides, which leaves its margin."""
    trained = torch.tensor([[-10.0, -20.0], [-30.0, -40.0]], dtype=torch.float64)
    exported = torch.tensor([[-9.0, -21.0], [-33.0, -43.0]], dtype=torch.float64)
    told = export_differences(trained, exported)
    assert told["export/nats_a_reply"] == 2.0
    spread = 1.959964 * math.sqrt(2) / math.sqrt(2)  # of the pairs' means 1 and 3
    assert told["export/nats_a_reply_low"] == pytest.approx(2 - spread)
    assert told["export/nats_a_reply_high"] == pytest.approx(2 + spread)
    assert told["export/margin_noise"] == pytest.approx(math.sqrt((2**2 + 0) / 2))
    assert told["export/num_pairs"] == 2


def test_a_shift_of_all_margins_is_noise_too() -> None:
    zeros = torch.zeros(5, 2, dtype=torch.float64)
    assert export_differences(zeros, zeros + torch.tensor([0.5, 0.0]))["export/margin_noise"] == pytest.approx(0.5)


def test_one_pair_and_no_change_have_values() -> None:
    told = export_differences(torch.ones(1, 2), torch.ones(1, 2))
    assert set(told.values()) == {0.0, 1.0}


def test_pairs_within_the_noise_are_ties() -> None:
    """1.96 × 0.5 is 0.98: of five margins three are within it."""
    told = accuracy_beyond_noise([5.0, 0.9, 0.1, -0.9, -2.0], noise=0.5)
    assert told["test/accuracy_beyond_noise"] == (1 + 3 * 0.5) / 5
    assert told["test/within_noise"] == 0.6
    assert told["test/accuracy_beyond_noise_low"] < 0.5 < told["test/accuracy_beyond_noise_high"]
    assert accuracy_beyond_noise([1.0], noise=0.0) == {}
