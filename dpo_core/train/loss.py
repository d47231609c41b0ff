"""The DPO loss (Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_core.pair import Pair


@dataclass(frozen=True, slots=True)
class PairLosses:
    """Per pair: ``losses`` (B,) float32, and the implicit ``rewards`` β·(log π_θ − log π_ref), each (B,) float32."""

    losses: Tensor
    rewards: Pair[Tensor]

    @property
    def margins(self) -> Tensor:
        """β(Δ_chosen − Δ_rejected), (B,)."""
        return self.rewards.chosen - self.rewards.rejected


def dpo_loss(policy: Pair[Tensor], reference: Pair[Tensor], beta: float) -> PairLosses:
    """−log σ(β(Δc − Δr)) for each pair, Δ = Σ_t (log π_θ − log π_ref) over a side's trained tokens.

    policy, reference: (B,) summed, or (B, T) per-token float32 log-probabilities, zero where nothing is trained.
    Per-token ones are subtracted before summing, which keeps what bf16 or long sums would lose.
    """
    rewards = Pair(
        beta * log_ratio(policy.chosen, reference.chosen), beta * log_ratio(policy.rejected, reference.rejected)
    )
    return PairLosses(-F.logsigmoid(rewards.chosen - rewards.rejected), rewards)


def log_ratio(policy: Tensor, reference: Tensor) -> Tensor:
    """Σ_t (log π_θ − log π_ref), (B,) from (B,) or (B, T)."""
    difference = policy - reference
    return difference.sum(-1) if difference.ndim == 2 else difference


# Below this many nats a difference is the rounding of two float32 sums, not a preference.
TIE_NATS = 1e-4


def wins(losses: PairLosses, beta: float) -> Tensor:
    """1 where Δc > Δr, ½ at a tie (as before the first step), 0 elsewhere; (B,) float32."""
    difference = losses.margins / beta
    return (difference > TIE_NATS).float() + 0.5 * (difference.abs() <= TIE_NATS).float()


def kl_estimate(policy: Tensor, reference: Tensor) -> Tensor:
    """A non-negative per-token estimate of KL(π_ref ‖ π_θ), same shape as its arguments.

    The k3 estimator r − 1 − log r with r = π_θ/π_ref (Schulman, "Approximating KL divergence", 2020), which is
    unbiased for tokens sampled from the reference; the completions of the dataset stand in for such samples.
    """
    log_r = policy - reference
    return torch.expm1(log_r) - log_r
