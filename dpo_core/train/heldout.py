"""Held-out preferences: does the policy prefer the chosen side, and does it still write it?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_core.pair import Pair
from dpo_core.records import ReferenceSet, RenderedSet
from dpo_core.render.rendered import Rows, open_split
from dpo_core.train.logps import completion_logps
from dpo_core.train.loss import PairLosses, dpo_loss, wins
from dpo_core.train.packing import microbatches, pad, sides
from dpo_core.train.reference import References, open_references

Z_95 = 1.959964


@dataclass(frozen=True)
class HeldOutSettings:
    """β of the loss, padded tokens of a microbatch, compute type."""

    dpo_beta: float
    token_budget: int
    precision: str


def measure(
    model: nn.Module, rendered: RenderedSet, reference: ReferenceSet, settings: HeldOutSettings
) -> dict[str, float]:
    """Metrics ``test/…`` of the test split; the model is used as it is, without gradients."""
    return held_out(model, open_split(rendered.path, "test"), open_references(reference.path, "test"), settings)


@torch.no_grad()
def held_out(model: nn.Module, rows: Rows, references: References, settings: HeldOutSettings) -> dict[str, float]:
    """``test/nll`` is −Σ logp·w / Σ w over chosen and rejected tokens together, as upstream defines it."""
    device = next(model.parameters()).device
    lengths = [rows[index].longest for index in range(len(rows))]
    parts = []
    for group in microbatches(lengths, settings.token_budget):
        pairs = [rows[index] for index in group]
        batch = pad(pairs).to(device)
        policy = sides(completion_logps(model, batch, settings.precision))
        known = sides(references.padded(group, batch.trained))
        losses = dpo_loss(policy, known, settings.dpo_beta)
        parts.append(columns(losses, wins(losses, settings.dpo_beta), policy, sides(batch.trained)))
    return summary(torch.cat(parts).double().cpu())


def columns(losses: PairLosses, won: Tensor, policy: Pair[Tensor], trained: Pair[Tensor]) -> Tensor:
    """(B, 8): loss, win, rewards, summed logps and token counts of both sides."""
    rewards = losses.rewards
    logps, counts = policy.map(lambda side: side.sum(-1)), trained.map(lambda side: side.sum(-1).float())
    both = (side for pair in (rewards, logps, counts) for side in (pair.chosen, pair.rejected))
    return torch.stack([losses.losses, won, *both], dim=-1)


def summary(table: Tensor) -> dict[str, float]:
    """The metrics of all pairs from their (N, 8) columns."""
    loss, won, chosen, rejected = (table[:, column] for column in range(4))
    logps, counts = table[:, 4:6].sum(0), table[:, 6:8].sum(0)
    accuracy = won.mean().item()
    low, high = wilson(accuracy, len(table))
    return {
        "test/dpo_loss": loss.mean().item(),
        "test/accuracy": accuracy,
        "test/accuracy_low": low,
        "test/accuracy_high": high,
        "test/margin": (chosen - rejected).mean().item(),
        "test/chosen_reward": chosen.mean().item(),
        "test/rejected_reward": rejected.mean().item(),
        "test/nll": (-logps.sum() / counts.sum()).item(),
        "test/nll_chosen": (-logps[0] / counts[0]).item(),
        "test/nll_rejected": (-logps[1] / counts[1]).item(),
        "test/num_pairs": float(len(table)),
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of ``count`` trials (Wilson, JASA 22, 1927)."""
    centre = share + Z_95**2 / (2 * count)
    spread = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    return (centre - spread) / scale, (centre + spread) / scale
