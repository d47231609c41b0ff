"""Preference losses: DPO and its variants, each a pure function of one equation, with rewards, wins and a KL estimate.

Every loss takes the same sums over each side's trained tokens and gives one value per pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.pair import Pair


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities of B pairs: each field a Pair of (B,) tensors, float32 (float64 from a float64 model).

    log_ratios: Δ = Σ_t (policy_logps − reference_logps) in nats. The difference is taken per token, before summing:
    sums over long completions would round it away. policy_logps: Σ_t log π_θ. lengths: number of trained tokens.
    """

    log_ratios: Pair[Tensor]
    policy_logps: Pair[Tensor]
    lengths: Pair[Tensor]

    @property
    def log_ratio_difference(self) -> Tensor:
        """Δ_chosen − Δ_rejected, (B,), in nats."""
        return self.log_ratios.chosen - self.log_ratios.rejected


class LossSettings(Protocol):
    """The settings that the losses read. The recipe's ``TrainSettings`` has them; this module does not import it."""

    @property
    def loss(self) -> str:
        """A name in LOSSES."""

    @property
    def dpo_beta(self) -> float:
        """β, the weight of the log-ratios."""

    @property
    def label_smoothing(self) -> float:
        """ε, the share of preferences whose label is taken to be wrong."""

    @property
    def simpo_gamma(self) -> float:
        """γ, SimPO's target margin."""

    @property
    def rpo_alpha(self) -> float:
        """α, the weight of the chosen side's negative log-likelihood."""


def sigmoid(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """DPO, −log σ(βh) with h = Δc − Δr (arXiv 2305.18290, equation 7); with ε > 0 cDPO,
    −(1 − ε) log σ(βh) − ε log σ(−βh) (Mitchell, "A note on DPO with noisy preferences", 2023).

    ln 2 where policy and reference agree.
    """
    return smoothed_sigmoid(settings.dpo_beta * pair_logps.log_ratio_difference, settings.label_smoothing)


def smoothed_sigmoid(logits: Tensor, epsilon: float) -> Tensor:
    """Binary cross-entropy of preference logits with a share ε of flipped labels."""
    return -(1 - epsilon) * F.logsigmoid(logits) - epsilon * F.logsigmoid(-logits)


def robust(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """Unbiased under a share ε < ½ of flipped labels: (−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε).

    (arXiv 2403.00409, rDPO.) ln 2 where policy and reference agree.
    """
    logits, epsilon = settings.dpo_beta * pair_logps.log_ratio_difference, settings.label_smoothing
    return (-(1 - epsilon) * F.logsigmoid(logits) + epsilon * F.logsigmoid(-logits)) / (1 - 2 * epsilon)


def ipo(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """(h − 1/(2β))² with h = Δc − Δr (arXiv 2310.12036, equation 17). 1/(4β²) where policy and reference agree."""
    return (pair_logps.log_ratio_difference - 1 / (2 * settings.dpo_beta)) ** 2


def hinge(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """max(0, 1 − βh) (SLiC's hinge on log-ratios, arXiv 2309.06657). 1 where policy and reference agree."""
    return torch.relu(1 - settings.dpo_beta * pair_logps.log_ratio_difference)


def length_normalised(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """−log σ(β(Δc/|c| − Δr/|r|)), log-ratios per token (Tülu 3, arXiv 2411.15124, section 5.1).

    ln 2 where policy and reference agree.
    """
    per_token = mean_per_token(pair_logps.log_ratios, pair_logps.lengths)
    return smoothed_sigmoid(settings.dpo_beta * (per_token.chosen - per_token.rejected), settings.label_smoothing)


def simpo(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """−log σ(β(log π(c)/|c| − log π(r)/|r|) − γ), without a reference (arXiv 2405.14734, equation 6)."""
    per_token = mean_per_token(pair_logps.policy_logps, pair_logps.lengths)
    logits = settings.dpo_beta * (per_token.chosen - per_token.rejected) - settings.simpo_gamma
    return smoothed_sigmoid(logits, settings.label_smoothing)


def mean_per_token(sums: Pair[Tensor], lengths: Pair[Tensor]) -> Pair[Tensor]:
    """Each side's sum over its number of trained tokens."""
    return Pair(sums.chosen / lengths.chosen, sums.rejected / lengths.rejected)


LOSSES: dict[str, Callable[[PairLogps, LossSettings], Tensor]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "length_normalised": length_normalised,
    "simpo": simpo,
}


def pair_losses(pair_logps: PairLogps, settings: LossSettings) -> Tensor:
    """The loss of each pair, (B,), plus α times the chosen side's NLL per trained token (RPO, arXiv 2404.19733)."""
    losses = LOSSES[settings.loss](pair_logps, settings)
    if settings.rpo_alpha == 0:
        return losses
    return losses - settings.rpo_alpha * pair_logps.policy_logps.chosen / pair_logps.lengths.chosen


def rewards(pair_logps: PairLogps, dpo_beta: float) -> Pair[Tensor]:
    """The implicit rewards βΔ of both sides, (B,) each (arXiv 2305.18290, section 5.1)."""
    return pair_logps.log_ratios.map(lambda log_ratio: dpo_beta * log_ratio)


# A smaller difference, in nats, is the rounding of two float32 sums and not a preference.
TIE_NATS = 1e-4


def wins(difference: Tensor) -> Tensor:
    """1 where Δc > Δr, ½ at a tie (as before the first step), 0 elsewhere; (B,) float32 from Δc − Δr."""
    return (difference > TIE_NATS).float() + 0.5 * (difference.abs() <= TIE_NATS).float()


def kl_estimate(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """A non-negative estimate of KL(π_ref ‖ π_θ) for each token, in nats, of its arguments' shape.

    The k3 estimator r − 1 − log r with r = π_θ/π_ref (Schulman, "Approximating KL divergence", 2020), which is
    unbiased for tokens sampled from the reference. The dataset's completions stand in for such samples.
    """
    log_r = policy_logps - reference_logps
    return torch.expm1(log_r) - log_r
