"""Preference losses, each a pure function of one equation, and what is measured beside them.

All of them take the same evidence, sums over a side's trained tokens, and give one loss a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.pair import Pair


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What is known of B pairs, each a Pair of (B,) tensors, float32 (or float64).

    ratios: Δ = Σ_t (log π_θ − log π_ref), subtracted per token before summing, which keeps what long sums would lose.
    logps: Σ_t log π_θ. lengths: trained tokens.
    """

    ratios: Pair[Tensor]
    logps: Pair[Tensor]
    lengths: Pair[Tensor]

    @property
    def difference(self) -> Tensor:
        """Δ_chosen − Δ_rejected, (B,)."""
        return self.ratios.chosen - self.ratios.rejected


@dataclass(frozen=True, slots=True)
class LossSettings:
    """β, and what single losses add: the share ε of wrong labels, SimPO's target margin γ, the NLL term's weight."""

    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    rpo_alpha: float = 0.0


def sigmoid(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """DPO, −log σ(βh) with h = Δc − Δr (arXiv 2305.18290, equation 7); with ε > 0 cDPO,
    −(1 − ε) log σ(βh) − ε log σ(−βh) (Mitchell, "A note on DPO with noisy preferences", 2023).

    ln 2 where policy and reference agree.
    """
    return smoothed_sigmoid(settings.beta * evidence.difference, settings.label_smoothing)


def smoothed_sigmoid(logits: Tensor, epsilon: float) -> Tensor:
    """Binary cross-entropy of preference logits with a share ε of flipped labels."""
    return -(1 - epsilon) * F.logsigmoid(logits) - epsilon * F.logsigmoid(-logits)


def robust(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """Unbiased under a share ε < ½ of flipped labels: (−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε).

    (arXiv 2403.00409, rDPO.) ln 2 where policy and reference agree.
    """
    logits, epsilon = settings.beta * evidence.difference, settings.label_smoothing
    return (-(1 - epsilon) * F.logsigmoid(logits) + epsilon * F.logsigmoid(-logits)) / (1 - 2 * epsilon)


def ipo(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """(h − 1/(2β))² with h = Δc − Δr (arXiv 2310.12036, equation 17). 1/(4β²) where policy and reference agree."""
    return (evidence.difference - 1 / (2 * settings.beta)) ** 2


def hinge(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """max(0, 1 − βh) (SLiC's hinge on log-ratios, arXiv 2309.06657). 1 where policy and reference agree."""
    return torch.relu(1 - settings.beta * evidence.difference)


def length_normalised(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """−log σ(β(Δc/|c| − Δr/|r|)), log-ratios per token (Tülu 3, arXiv 2411.15124, section 5.1).

    ln 2 where policy and reference agree.
    """
    per_token = mean_per_token(evidence.ratios, evidence.lengths)
    return smoothed_sigmoid(settings.beta * (per_token.chosen - per_token.rejected), settings.label_smoothing)


def simpo(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """−log σ(β(log π(c)/|c| − log π(r)/|r|) − γ), without a reference (arXiv 2405.14734, equation 6)."""
    per_token = mean_per_token(evidence.logps, evidence.lengths)
    logits = settings.beta * (per_token.chosen - per_token.rejected) - settings.simpo_gamma
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


def pair_losses(evidence: PairLogps, settings: LossSettings) -> Tensor:
    """(B,): the loss asked for, plus α times the chosen side's NLL per trained token (RPO, arXiv 2404.19733)."""
    losses = LOSSES[settings.loss](evidence, settings)
    if settings.rpo_alpha == 0:
        return losses
    return losses - settings.rpo_alpha * evidence.logps.chosen / evidence.lengths.chosen


def rewards(evidence: PairLogps, beta: float) -> Pair[Tensor]:
    """The implicit rewards βΔ of both sides, (B,) each (arXiv 2305.18290, section 5.1)."""
    return evidence.ratios.map(lambda ratio: beta * ratio)


# Below this many nats a difference is the rounding of two float32 sums, not a preference.
TIE_NATS = 1e-4


def wins(difference: Tensor) -> Tensor:
    """1 where Δc > Δr, ½ at a tie (as before the first step), 0 elsewhere; (B,) float32 from Δc − Δr."""
    return (difference > TIE_NATS).float() + 0.5 * (difference.abs() <= TIE_NATS).float()


def kl_estimate(policy: Tensor, reference: Tensor) -> Tensor:
    """A non-negative per-token estimate of KL(π_ref ‖ π_θ), same shape as its arguments.

    The k3 estimator r − 1 − log r with r = π_θ/π_ref (Schulman, "Approximating KL divergence", 2020), which is
    unbiased for tokens sampled from the reference; the completions of the dataset stand in for such samples.
    """
    log_r = policy - reference
    return torch.expm1(log_r) - log_r
