"""Validation on held-out pairs: preference metrics and the likelihood of both sides."""

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
from dpo_core.train.loop import pair_logps
from dpo_core.train.loss import PairLogps, pair_losses, rewards, wins
from dpo_core.train.reference import Reference, open_references
from dpo_core.wilson import wilson

MOST_SOURCES = 20


@dataclass(frozen=True)
class ValidationConfig:
    """Settings of a validation: ``train`` gives loss and precision; ``max_pairs``: only the first pairs (None: all)."""

    train: TrainSettings
    layout: Layout
    max_pairs: int | None = None


@dataclass(frozen=True)
class ValidationResult:
    """Metrics and values of N held-out pairs.

    ``rewards``: implicit rewards βΔ, N per side. ``logps``: the model's summed log-probabilities, (N, 2) float64 on the
    CPU, columns chosen and rejected. ``margins``: Δ_chosen − Δ_rejected in nats, N values.
    """

    metrics: dict[str, float]
    rewards: Pair[list[float]]
    logps: Tensor
    margins: list[float]

    def metrics_with_noise(self, noise: float = 0.0) -> dict[str, float]:
        """The metrics, with those of the pairs whose margin exceeds the export's ``noise`` in nats (0: none)."""
        return self.metrics | export_noise.accuracy_beyond_noise(self.margins, noise)


def validation_config(
    model: nn.Module, train: TrainSettings, rendered: RenderedSet, reference: ReferenceSet
) -> ValidationConfig:
    """Validation settings of a model: the recipe's, with a layout that the model supports."""
    return ValidationConfig(train, layout_of_run(model, train.layout, rendered, reference))


def validate(
    model: nn.Module, rendered: RenderedSet, reference: ReferenceSet, config: ValidationConfig
) -> ValidationResult:
    """Metrics ``test/…`` of the test split, with those by length (:mod:`dpo_core.train.length_bias`) and by source
    (:func:`source_metrics`). The model is used as it is, without gradients.

    All preference metrics come from this function: before, during and after training, and in the evaluate stage.
    """
    rows, references = open_split(rendered.path, "test"), open_references(reference.path, "test")
    table = pair_table(model, rows, references, config)
    win, chosen_reward, rejected_reward = (table[:, column].numpy() for column in (1, 2, 3))
    lengths = (table[:, column].numpy() for column in (6, 7))
    metrics = summary_metrics(table) | source_metrics(table, test_sources(rendered.path)[: len(table)])
    metrics |= length_bias.length_metrics(win, chosen_reward - rejected_reward, *lengths)
    pair_rewards = Pair(chosen_reward.tolist(), rejected_reward.tolist())
    margins = (table[:, 2] - table[:, 3]) / config.train.dpo_beta
    return ValidationResult(metrics, pair_rewards, table[:, 4:6], margins.tolist())


def source_metrics(table: Tensor, sources: Sequence[str]) -> dict[str, float]:
    """``source/accuracy_<name>``, ``source/margin_<name>`` and ``source/num_pairs_<name>`` for the MOST_SOURCES most
    frequent sources; empty with fewer than two sources. ``sources``: the name of each pair's source."""
    metrics: dict[str, float] = {}
    pairs_by_source = Counter(sources)
    if len(pairs_by_source) < 2:
        return metrics
    for source, count in pairs_by_source.most_common(MOST_SOURCES):
        part = table[[index for index, name in enumerate(sources) if name == source]]
        name = re.sub(r"[^\w. -]+", "_", source) or "none"
        metrics[f"source/accuracy_{name}"] = part[:, 1].mean().item()
        metrics[f"source/margin_{name}"] = (part[:, 2] - part[:, 3]).mean().item()
        metrics[f"source/num_pairs_{name}"] = float(count)
    return metrics


@torch.no_grad()
def pair_table(model: nn.Module, rows: TokenDataset, references: Reference, config: ValidationConfig) -> Tensor:
    """The columns of every pair (:func:`pair_columns`), (N, 8) float64 on the CPU, in the rows' order."""
    device, train = next(model.parameters()).device, config.train
    count = len(rows) if config.max_pairs is None else min(config.max_pairs, len(rows))
    items = [branches(rows[index]) for index in range(count)]
    parts, order = [], []
    progress = Progress("evaluating", len(items), "held-out pairs")
    for group in split_microbatches(config.layout, items, tokens_without_gradients(model)):
        batch = build(config.layout, [items[index] for index in group], device)
        policy_logps = completion_logps(model, batch, train.precision)
        logps = pair_logps(policy_logps, references.reference_logps(group, batch), batch.counts)
        order += group
        progress.advance(len(group))
        parts.append(pair_columns(pair_losses(logps, train), logps, train.dpo_beta))
    return torch.cat(parts).double().cpu()[torch.tensor(order).argsort()]


def pair_columns(losses: Tensor, logps: PairLogps, dpo_beta: float) -> Tensor:
    """(B, 8): loss, win, then chosen and rejected of: reward, summed logp, number of trained tokens."""
    pairs = (rewards(logps, dpo_beta), logps.policy_logps, logps.lengths)
    columns = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    return torch.stack([losses, wins(logps.log_ratio_difference), *columns], dim=-1)


def summary_metrics(table: Tensor) -> dict[str, float]:
    """The metrics of all pairs from their (N, 8) columns.

    ``test/nll`` is −Σ logp / number of trained tokens, over chosen and rejected sides together.
    """
    loss, win, chosen, rejected = (table[:, column] for column in range(4))
    logps, counts = table[:, 4:6].sum(0), table[:, 6:8].sum(0)
    accuracy = win.mean().item()
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
