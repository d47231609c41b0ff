"""Automatic token budget: how many tokens per microbatch fit into memory, and the expected peak."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import OutOfMemoryError
from dpo_core.pair import Pair
from dpo_core.render.token_dataset import Ids, TokenDataset
from dpo_core.system import gpus
from dpo_core.system.device import free_memory
from dpo_core.train import data_order
from dpo_core.train.batching import budget_note
from dpo_core.train.batching.memory_estimate import MemoryEstimate, Workload, estimate_memory
from dpo_core.train.batching.packing import Layout, microbatches, padded_microbatches

# The part of what is free that ``auto`` may plan with.
MEMORY_SHARE = 0.8
# On a CPU 2,048 tokens were measured best; a GPU gains from more.
MIN_TOKENS, MAX_TOKENS = budget_note.MIN_TOKENS, {"cpu": 2048, "cuda": 65_536}
TOKENS_MULTIPLE = 256
# Optimizer steps whose microbatches are looked at for the largest.
PLANNED_STEPS = 64

TokenBudgetSetting = int | Literal["auto"]


@dataclass(frozen=True)
class BudgetPlan:
    """A token budget. ``auto``: found by memory. ``expected``: bytes of the peak; ``available``: those that this
    process may hold. ``lines``: lines about it for the user."""

    tokens: int
    auto: bool
    expected: int
    available: int
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = " (auto)" if self.auto else ""
        memory = f"about {self.expected / 1e9:.1f} GB expected of {self.available / 1e9:.1f} GB free"
        return f"{self.tokens:,} tokens a microbatch{how}, {memory}"


@dataclass(frozen=True)
class BudgetHistory:
    """What is known of earlier tries: the budget that was kept, and the one that memory ended."""

    kept: int | None = None
    failed: int | None = None


def plan(
    work: Workload, setting: TokenBudgetSetting, history: BudgetHistory, batches: Sequence[Sequence[int]]
) -> BudgetPlan:
    """The budget for this work on this device. ``batches``: the pairs of the first optimizer steps.

    Raises OutOfMemoryError when the weights and what belongs to them alone do not fit.
    """
    estimate = estimate_memory(work)
    available = estimate.loaded + free_memory(work.device)
    check_states_fit(estimate, available)
    if setting == "auto":
        tokens, lines = automatic_budget(estimate, available, history)
    else:
        tokens, lines = setting, []
    expected = estimate.peak(largest_microbatch(work, tokens, batches))
    if expected > available:
        fitting_tokens = largest_fitting_budget(estimate, MEMORY_SHARE * available)
        lines.append(
            f"Warning: about {expected / 1e9:.1f} GB are expected with token_budget={tokens}, and"
            f" {available / 1e9:.1f} GB are available; {fitting_tokens} would fit."
        )
    return BudgetPlan(tokens, setting == "auto", expected, available, tuple(lines))


def automatic_budget(estimate: MemoryEstimate, available: int, history: BudgetHistory) -> tuple[int, list[str]]:
    """What ``auto`` stands for, and lines about it: half of what failed, else what was kept, else what fits."""
    if history.failed:
        tokens = half_budget(history.failed)
        line = f"Memory ended the last try with token_budget={history.failed}: this one takes {tokens}."
        more = " Its bits are not those of a run that keeps its budget." if history.kept else ""
        return tokens, [line + more]
    return history.kept or largest_fitting_budget(estimate, MEMORY_SHARE * available), []


def largest_fitting_budget(estimate: MemoryEstimate, available_bytes: float) -> int:
    """The most tokens, a multiple of STEP, whose peak is within ``available_bytes`` bytes; never less than LEAST."""
    steps = range(MIN_TOKENS // TOKENS_MULTIPLE, MAX_TOKENS[estimate.device] // TOKENS_MULTIPLE + 1)
    position = np.searchsorted([estimate.peak(TOKENS_MULTIPLE * step) for step in steps], available_bytes, side="right")
    return max(MIN_TOKENS, TOKENS_MULTIPLE * steps[max(0, int(position) - 1)])


def half_budget(tokens: int) -> int:
    """Half of a budget, a multiple of STEP where it is long enough; never less than LEAST."""
    return max(MIN_TOKENS, tokens // 2 // TOKENS_MULTIPLE * TOKENS_MULTIPLE)


def check_states_fit(estimate: MemoryEstimate, available: int) -> None:
    """Raises OutOfMemoryError when weights, gradients and the optimizer's state alone exceed what is available."""
    if estimate.certain <= available:
        return
    gpu = gpus.find_gpu() if estimate.device == "cuda" else None
    raise OutOfMemoryError(
        f"Weights, gradients and the optimizer's state take {estimate.certain / 1e9:.1f} GB, and"
        f" {available / 1e9:.1f} GB are available. {gpu.held_by if gpu else ''}".strip(),
        "They must fit before anything is trained.",
        "Train less (lora_rank), choose a smaller model, or make memory free.",
    )


def first_batches(pairs: int, train: TrainSettings) -> list[list[int]]:
    """The pairs of the first optimizer steps of a run."""
    total = data_order.total_steps(pairs, train)
    return [data_order.batch_indices(step, pairs, train) for step in range(min(PLANNED_STEPS, total))]


def largest_microbatch(work: Workload, tokens: int, batches: Iterable[Sequence[int]]) -> int:
    """Tokens of the largest microbatch that a budget makes of these batches, a pair beyond it alone among them."""
    costs = pair_costs(work.rows, work.layout, work.sides)
    found = [largest_group(work.layout, costs[list(batch)], tokens) for batch in batches]
    return max([*found, int(costs[costs > tokens].max(initial=0))])


def largest_group(layout: Layout, costs: NDArray[np.int64], tokens: int) -> int:
    """Tokens of the largest microbatch of pairs of these costs."""
    if layout == "tree":
        return int(max((costs[group].sum() for group in microbatches(costs.tolist(), tokens)), default=0))
    every = padded_microbatches(costs.tolist(), tokens)
    return int(max((costs[group].max() * len(group) for group in every), default=0))


def pair_costs(rows: TokenDataset, layout: Layout, sides: int) -> NDArray[np.int64]:
    """Tokens that every pair takes in a layout, (N,); of the longer side alone where ``sides`` is 1."""
    prompt, both = rows.lengths()
    longer = np.maximum(both.chosen, both.rejected)
    if layout == "padded" or sides == 1:
        return sides * (prompt + longer).astype(np.int64)
    return pair_tokens(prompt, both)


def pair_tokens(prompt: Ids, both: Pair[Ids]) -> NDArray[np.int64]:
    """Tokens of whole pairs, the prompt once."""
    return prompt.astype(np.int64) + both.chosen + both.rejected
