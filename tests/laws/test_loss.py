"""The loss's laws: hand-worked values, ln 2 at the start, symmetry, gradients."""

import math

import pytest
import torch

from dpo_core.pair import Pair
from dpo_core.train.loss import dpo_loss, kl_estimate, wins

POLICY = Pair(torch.tensor([-2.0, -1.5]), torch.tensor([-3.0, -4.0]))
REFERENCE = Pair(torch.tensor([-2.5, -2.0]), torch.tensor([-2.5, -3.0]))


def test_hand_worked_values() -> None:
    losses = dpo_loss(POLICY, REFERENCE, beta=0.1)
    assert losses.losses.mean().item() == pytest.approx(0.63267684, abs=1e-7)
    assert wins(losses, 0.1).mean().item() == 1
    assert losses.margins.mean().item() == pytest.approx(0.125)
    assert losses.rewards.chosen.mean().item() == pytest.approx(0.05)
    assert losses.rewards.rejected.mean().item() == pytest.approx(-0.075)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_policy_equal_to_reference_gives_ln_2_and_half_accuracy(beta: float) -> None:
    losses = dpo_loss(REFERENCE, REFERENCE, beta)
    assert losses.losses.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert wins(losses, beta).tolist() == [0.5, 0.5]


def test_gradient_of_the_margin_logit_is_minus_a_half_at_the_start() -> None:
    margin = torch.zeros(1, requires_grad=True)
    zero = torch.zeros(1)
    dpo_loss(Pair(margin, zero), Pair(zero, zero), beta=1.0).losses.sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(-0.5)


def test_swapping_sides_negates_margins_and_mirrors_the_loss() -> None:
    there = dpo_loss(POLICY, REFERENCE, 0.3)
    back = dpo_loss(POLICY.swap(), REFERENCE.swap(), 0.3)
    assert torch.allclose(back.margins, -there.margins)
    # −logσ(−m) = m − logσ(m)
    assert torch.allclose(back.losses, there.losses + there.margins)


def test_per_token_logps_are_subtracted_before_summing() -> None:
    tokens = torch.full((1, 4096), -7.123456)
    nudged = tokens + 1e-5
    exact = 4096 * (nudged.double() - tokens.double())[0, 0].item()
    margins = dpo_loss(Pair(nudged, tokens), Pair(tokens, tokens), beta=1.0).margins
    assert margins.item() == pytest.approx(exact, rel=1e-4)


def test_kl_estimate_is_zero_without_a_difference_and_positive_otherwise() -> None:
    reference = torch.tensor([-1.0, -2.0, -3.0])
    assert kl_estimate(reference, reference).tolist() == [0, 0, 0]
    assert (kl_estimate(reference + torch.tensor([0.5, -0.5, 2.0]), reference) > 0).all()
