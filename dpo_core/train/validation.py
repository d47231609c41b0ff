"""Held-out preferences: does the policy prefer the chosen side, and does it still write it?"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_core.config.recipe import TrainSettings
from dpo_core.pair import Pair
from dpo_core.records import ReferenceSet, RenderedSet
from dpo_core.render.token_dataset import TokenDataset, open_split, test_sources
from dpo_core.system.progress import Progress
from dpo_core.train import export_noise, length_bias
from dpo_core.train.batching.batch_layout import layout_of_run
from dpo_core.train.batching.memory_estimate import tokens_without_gradients
from dpo_core.train.batching.packing import Layout, branches, build, split_microbatches
from dpo_core.train.logps import completion_logps
from dpo_core.train.loop import loss_settings, pair_logps
from dpo_core.train.loss import LossSettings, PairLogps, pair_losses, rewards, wins
from dpo_core.train.reference import Reference, open_references
from dpo_core.wilson import wilson

MOST_SOURCES = 20


@dataclass(frozen=True)
class ValidationConfig:
    """The loss, the layout of microbatches, the compute type; ``pairs``: the first so many, None for all."""

    losses: LossSettings
    layout: Layout
    precision: str
    pairs: int | None = None


@dataclass(frozen=True)
class ValidationResult:
    """``metrics`` of the test split; ``rewards``: the implicit rewards βΔ of every pair's sides, N each.

    ``logps``: what the model gives each side, (N, 2) float64 on the CPU. ``margins``: Δ_chosen − Δ_rejected in nats, N.
    """

    metrics: dict[str, float]
    rewards: Pair[list[float]]
    logps: Tensor
    margins: list[float]

    def told(self, noise: float = 0.0) -> dict[str, float]:
        """The metrics with what stands beyond the noise (nats) that exporting put into the margins."""
        return self.metrics | export_noise.accuracy_beyond_noise(self.margins, noise)


def validation_config(
    model: nn.Module, train: TrainSettings, rendered: RenderedSet, reference: ReferenceSet
) -> ValidationConfig:
    """How this model is measured, wherever that is: the recipe's loss and compute type, a layout it can attend in."""
    return ValidationConfig(
        loss_settings(train), layout_of_run(model, train.layout, rendered, reference), train.precision
    )


def validate(
    model: nn.Module, rendered: RenderedSet, reference: ReferenceSet, settings: ValidationConfig
) -> ValidationResult:
    """Metrics ``test/…`` of the test split, how they go with length (:mod:`dpo_core.train.length_bias`), and by source
    (:func:`source_metrics`); the model is used as it is, without gradients.

    This is the one place where preferences are measured: before, during and after training, and by the evaluate stage.
    """
    split_rows, references = open_split(rendered.path, "test"), open_references(reference.path, "test")
    table = pair_table(model, split_rows, references, settings)
    won, chosen, rejected = (table[:, column].numpy() for column in (1, 2, 3))
    lengths = (table[:, column].numpy() for column in (6, 7))
    told = summary_metrics(table) | source_metrics(table, test_sources(rendered.path)[: len(table)])
    told |= length_bias.length_metrics(won, chosen - rejected, *lengths)
    rewarded = Pair(chosen.tolist(), rejected.tolist())
    return ValidationResult(
        told, rewarded, table[:, 4:6], ((table[:, 2] - table[:, 3]) / settings.losses.beta).tolist()
    )


def source_metrics(table: Tensor, sources: Sequence[str]) -> dict[str, float]:
    """``source/accuracy_<name>``, ``source/margin_<name>`` and ``source/num_pairs_<name>`` of the pairs' sources, the
    MOST_SOURCES most frequent of them; nothing where there are not two."""
    told: dict[str, float] = {}
    counted = Counter(sources)
    if len(counted) < 2:
        return told
    for source, count in counted.most_common(MOST_SOURCES):
        part = table[[place for place, other in enumerate(sources) if other == source]]
        name = re.sub(r"[^\w. -]+", "_", source) or "none"
        told[f"source/accuracy_{name}"] = part[:, 1].mean().item()
        told[f"source/margin_{name}"] = (part[:, 2] - part[:, 3]).mean().item()
        told[f"source/num_pairs_{name}"] = float(count)
    return told


@torch.no_grad()
def pair_table(model: nn.Module, rows: TokenDataset, references: Reference, settings: ValidationConfig) -> Tensor:
    """The columns of every pair, (N, 8) float64 on the CPU, in the rows' order."""
    device = next(model.parameters()).device
    count = len(rows) if settings.pairs is None else min(settings.pairs, len(rows))
    items = [branches(rows[index]) for index in range(count)]
    parts, places = [], []
    progress = Progress("evaluating", len(items), "held-out pairs")
    for group in split_microbatches(settings.layout, items, tokens_without_gradients(model)):
        batch = build(settings.layout, [items[place] for place in group], device)
        policy = completion_logps(model, batch, settings.precision)
        evidence = pair_logps(policy, references.of(group, batch), batch.counts)
        places += group
        progress.advance(len(group))
        parts.append(pair_columns(pair_losses(evidence, settings.losses), evidence, settings.losses.beta))
    return torch.cat(parts).double().cpu()[torch.tensor(places).argsort()]


def pair_columns(losses: Tensor, evidence: PairLogps, beta: float) -> Tensor:
    """(B, 8): loss, win, rewards, summed logps and token counts of both sides."""
    both = (side for pair in (rewards(evidence, beta), evidence.logps, evidence.lengths) for side in sides(pair))
    return torch.stack([losses, wins(evidence.difference), *both], dim=-1)


def sides(pair: Pair[Tensor]) -> tuple[Tensor, Tensor]:
    """Chosen and rejected as columns of a table."""
    return pair.chosen, pair.rejected


def summary_metrics(table: Tensor) -> dict[str, float]:
    """The metrics of all pairs from their (N, 8) columns.

    ``test/nll`` is −Σ logp·w / Σ w over chosen and rejected tokens together, as upstream defines it.
    """
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
