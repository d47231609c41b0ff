"""Laws of the losses: hand-worked values, closed forms at the start, symmetry, gradients."""

import math

import pytest
import torch
from torch import Tensor

from dpo_core.config.recipe import TrainSettings
from dpo_core.pair import Pair
from dpo_core.train.loop import pair_logps
from dpo_core.train.loss import LOSSES, PairLogps, kl_estimate, pair_losses, rewards, wins

POLICY = Pair(torch.tensor([-2.0, -1.5]), torch.tensor([-3.0, -4.0]))
REFERENCE = Pair(torch.tensor([-2.5, -2.0]), torch.tensor([-2.5, -3.0]))
LENGTHS = Pair(torch.tensor([4.0, 2.0]), torch.tensor([3.0, 8.0]))


def summed(policy: Pair[Tensor], reference: Pair[Tensor]) -> PairLogps:
    log_ratios = Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
    return PairLogps(log_ratios, policy, LENGTHS)


def losses(name: str, policy: Pair[Tensor] = POLICY, reference: Pair[Tensor] = REFERENCE, **settings: float) -> Tensor:
    return pair_losses(summed(policy, reference), TrainSettings.model_validate({"loss": name} | settings))


def test_hand_worked_values() -> None:
    logps = summed(POLICY, REFERENCE)
    reward = rewards(logps, 0.1)
    assert losses("sigmoid", dpo_beta=0.1).mean().item() == pytest.approx(0.63267684, abs=1e-7)
    assert wins(logps.log_ratio_difference).mean().item() == 1
    assert (reward.chosen - reward.rejected).mean().item() == pytest.approx(0.125)
    assert reward.chosen.mean().item() == pytest.approx(0.05)
    assert reward.rejected.mean().item() == pytest.approx(-0.075)


# Differences here are 1.0 and 1.5; per token 0.125 + 0.5/3 and 0.25 + 1/8.
@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        (
            "sigmoid",
            {"label_smoothing": 0.1},
            -0.9 * math.log(1 / (1 + math.exp(-0.1))) + 0.1 * math.log1p(math.exp(0.1)),
        ),
        ("ipo", {}, (1.0 - 5) ** 2),
        ("hinge", {}, 0.9),
        ("length_normalised", {}, math.log1p(math.exp(-0.1 * (0.125 + 0.5 / 3)))),
        ("simpo", {"simpo_gamma": 0.5}, math.log1p(math.exp(-(0.1 * (-0.5 + 1.0) - 0.5)))),
        (
            "robust",
            {"label_smoothing": 0.1},
            (0.9 * math.log1p(math.exp(-0.1)) - 0.1 * math.log1p(math.exp(0.1))) / 0.8,
        ),
        ("sigmoid", {"rpo_alpha": 2.0}, math.log1p(math.exp(-0.1)) + 2.0 * 0.5),
    ],
)
def test_each_loss_by_hand(name: str, settings: dict[str, float], first: float) -> None:
    assert losses(name, dpo_beta=0.1, **settings)[0].item() == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"simpo"}))
def test_policy_equal_to_reference_gives_the_closed_form(name: str, beta: float) -> None:
    closed = {"ipo": 1 / (4 * beta**2), "hinge": 1.0}.get(name, math.log(2))
    assert losses(name, REFERENCE, REFERENCE, dpo_beta=beta).tolist() == pytest.approx([closed] * 2, rel=1e-6)
    assert wins(summed(REFERENCE, REFERENCE).log_ratio_difference).tolist() == [0.5, 0.5]


def test_smoothed_losses_start_at_ln_2_too() -> None:
    for name in ("sigmoid", "robust", "length_normalised"):
        start = losses(name, REFERENCE, REFERENCE, label_smoothing=0.2)
        assert start.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_simpo_with_equal_sides_starts_at_its_margin() -> None:
    same = Pair(LENGTHS.chosen * -1.5, LENGTHS.rejected * -1.5)
    start = losses("simpo", same, same, simpo_gamma=0.7)
    assert start.tolist() == pytest.approx([math.log1p(math.exp(0.7))] * 2, rel=1e-6)


def test_gradient_of_the_margin_logit_is_minus_a_half_at_the_start() -> None:
    margin = torch.zeros(1, requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1)
    logps = PairLogps(Pair(margin, zero), Pair(margin, zero), Pair(one, one))
    pair_losses(logps, TrainSettings(dpo_beta=1.0)).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(-0.5)


def test_swapping_sides_mirrors_the_loss() -> None:
    original = losses("sigmoid", dpo_beta=0.3)
    swapped = losses("sigmoid", POLICY.swap(), REFERENCE.swap(), dpo_beta=0.3)
    margins = 0.3 * summed(POLICY, REFERENCE).log_ratio_difference
    # −logσ(−m) = m − logσ(m)
    assert torch.allclose(swapped, original + margins)


def test_per_token_logps_are_subtracted_before_summing() -> None:
    tokens = torch.full((4097,), -7.123456)
    nudged = tokens.clone()
    nudged[:4096] += 1e-5
    exact = (nudged.double() - tokens.double()).sum().item()
    assert pair_logps(nudged, tokens, [4096, 1]).log_ratio_difference.item() == pytest.approx(exact, rel=1e-4)


def test_kl_estimate_is_zero_without_a_difference_and_positive_otherwise() -> None:
    reference = torch.tensor([-1.0, -2.0, -3.0])
    assert kl_estimate(reference, reference).tolist() == [0, 0, 0]
    assert (kl_estimate(reference + torch.tensor([0.5, -0.5, 2.0]), reference) > 0).all()
