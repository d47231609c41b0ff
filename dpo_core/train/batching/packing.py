"""Packing of microbatches: prompts with their completions in one row without padding, or in padded rows."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpo_core.pair import Pair
from dpo_core.render.token_dataset import CompletionTokens, Ids, TokenPair

Layout = Literal["tree", "padded"]

# A row's length on a GPU is a multiple of this: FlexAttention works in blocks of as many places.
QUANTUM = 128


@dataclass(frozen=True, slots=True)
class Branches:
    """A prompt and the completions that go on from it: two for a pair, one for supervised training."""

    prompt: Ids
    completions: tuple[CompletionTokens, ...]

    @property
    def tokens(self) -> int:
        """Tokens with the prompt counted once: what the tree layout computes."""
        return len(self.prompt) + sum(len(completion.ids) for completion in self.completions)

    @property
    def padded(self) -> int:
        """Tokens of as many rows as completions, all as long as the longest: what the padded layout computes."""
        return len(self.completions) * (len(self.prompt) + max(len(side.ids) for side in self.completions))


@dataclass(frozen=True, slots=True)
class Span:
    """Lengths of one prompt and of its completions, as they follow each other in a tree row."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Places that it takes in the row."""
        return self.prompt + sum(self.completions)

    @property
    def attended(self) -> int:
        """Pairs of a token and a token that it sees."""
        causal = (length * (length + 1) // 2 for length in (self.prompt, *self.completions))
        return sum(causal) + self.prompt * sum(self.completions)


@dataclass(frozen=True, slots=True)
class Batch:
    """One microbatch. M trained tokens stand in ``targets``, completion after completion, in the order given.

    ids, positions: (R, T) int64. attention: (R, T) bool, true for real tokens (padded layout; None in a tree).
    spans: what the one row of a tree holds (tree layout; empty when padded).
    predictors: (M,) int64, the place in the flattened rows whose hidden state predicts the target. targets: (M,) int64.
    counts: trained tokens of each completion.
    """

    ids: Tensor
    positions: Tensor
    attention: Tensor | None
    spans: tuple[Span, ...]
    predictors: Tensor
    targets: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: to_device(getattr(self, name), device) for name in ("ids", "positions", "predictors", "targets")
        }
        attention = None if self.attention is None else to_device(self.attention, device)
        return replace(self, **moved, attention=attention)

    @property
    def size(self) -> int:
        """Tokens that are computed, padding included."""
        return self.ids.numel()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. The copy to a GPU is asynchronous: the host does not wait for it.

    Raises ValueError for a tensor that is not dense, on every device: pinned memory has the tensor's own strides, and
    cannot hold a tensor whose elements share memory.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of strides {tensor.stride()} for {tuple(tensor.shape)} goes onto {device}")
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def branches(pair: TokenPair) -> Branches:
    """A pair's prompt with its completions: chosen, then rejected. :func:`by_side` separates them again."""
    return Branches(pair.prompt, (pair.sides.chosen, pair.sides.rejected))


def build(layout: Layout, items: Sequence[Branches], device: torch.device) -> Batch:
    """The conversations as one microbatch in this layout, on a device."""
    quantum = QUANTUM if device.type == "cuda" else 1
    return (tree_batch(items, quantum) if layout == "tree" else padded_batch(items)).to(device)


def tree_batch(items: Sequence[Branches], quantum: int = 1) -> Batch:
    """One row: each prompt once, then its completions, whose positions restart at the prompt's end.

    Its length is a multiple of ``quantum``; with 1 there is no padding.
    """
    ids: list[NDArray[Any]] = []
    positions, predictors, targets = [], [], []
    start = 0
    for item in items:
        ids += [item.prompt, *(completion.ids for completion in item.completions)]
        length = len(item.prompt)
        positions.append(np.arange(length))
        position = start + length
        for completion in item.completions:
            steps = np.arange(len(completion.ids))
            positions.append(length + steps)
            before = position + steps - 1
            before[:1] = start + length - 1
            predictors.append(before[completion.mask])
            targets.append(completion.ids[completion.mask])
            position += len(steps)
        start = position
    blank = np.zeros(-start % quantum, dtype=np.int64)
    ids, positions = [*ids, blank], [*positions, blank]
    spans = tuple(Span(len(item.prompt), tuple(len(side.ids) for side in item.completions)) for item in items)
    row, position_ids = (torch.from_numpy(np.concatenate(parts).astype(np.int64))[None] for parts in (ids, positions))
    return Batch(
        row, position_ids, None, spans, concatenated(predictors), concatenated(targets), trained_token_counts(items)
    )


def padded_batch(items: Sequence[Branches]) -> Batch:
    """A row for each completion, its prompt before it, padded on the right: the readable oracle."""
    rows = [(item.prompt, completion) for item in items for completion in item.completions]
    width = max(len(prompt) + len(completion.ids) for prompt, completion in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    attention = np.zeros((len(rows), width), dtype=np.bool_)
    predictors, targets = [], []
    for index, (prompt, completion) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion.ids)
        ids[index, :start], ids[index, start:end] = prompt, completion.ids
        attention[index, :end] = True
        predictors.append(index * width + start - 1 + np.flatnonzero(completion.mask))
        targets.append(completion.ids[completion.mask])
    positions = torch.arange(width).repeat(len(rows), 1)
    real = torch.from_numpy(attention)
    return Batch(
        torch.from_numpy(ids),
        positions,
        real,
        (),
        concatenated(predictors),
        concatenated(targets),
        trained_token_counts(items),
    )


def concatenated(parts: Sequence[NDArray[Any]]) -> Tensor:
    """All parts after each other, int64."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def trained_token_counts(items: Sequence[Branches]) -> tuple[int, ...]:
    """Trained tokens of every completion."""
    return tuple(int(completion.mask.sum()) for item in items for completion in item.completions)


def microbatches(costs: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups of positions in ``costs`` (tokens of each), none above the budget, as even as can be.

    The longest come first, each into the emptiest group that has room; one beyond the budget goes alone.
    """
    ordered = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    alone = [[position] for position in ordered if costs[position] > token_budget]
    rest = ordered[len(alone) :]
    groups: list[list[int]] = [[] for _ in range(-(-sum(costs[position] for position in rest) // token_budget))]
    loads = [(0, index) for index in range(len(groups))]  # a heap: the lightest group first
    for position in rest:
        load, lightest = loads[0]
        if load + costs[position] <= token_budget:
            heapq.heapreplace(loads, (load + costs[position], lightest))
        else:
            lightest = len(groups)
            groups.append([])
            heapq.heappush(loads, (costs[position], lightest))
        groups[lightest].append(position)
    return alone + groups


def padded_microbatches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups of like length, longest first: twice the longest times their number stays within the budget."""
    groups: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and longest * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(position)
        else:
            groups.append([position])
            longest = lengths[position]
    return groups


def split_microbatches(layout: Layout, items: Sequence[Branches], token_budget: int) -> list[list[int]]:
    """Microbatches of the items, by place, for this layout."""
    if layout == "tree":
        return microbatches([item.tokens for item in items], token_budget)
    return padded_microbatches([item.padded for item in items], token_budget)


def by_side(completions: Tensor) -> Pair[Tensor]:
    """One value per completion (2B,), in the order of :func:`branches`, as a Pair of (B,).

    This function and :func:`branches` alone know that order.
    """
    return Pair(completions[::2], completions[1::2])


def sums_by_side(token_values: Tensor, counts: Sequence[int]) -> Pair[Tensor]:
    """Sums over each side's trained tokens, (B,), of a batch of pairs' token values (M,). ``counts``: Batch.counts."""
    completions = to_device(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), token_values.device)
    return by_side(token_values.new_zeros(len(counts)).index_add(0, completions, token_values))


def lengths_by_side(token_values: Tensor, counts: Sequence[int]) -> Pair[Tensor]:
    """Each side's number of trained tokens, (B,), in the type and on the device of ``token_values``."""
    return by_side(to_device(torch.tensor(counts, dtype=token_values.dtype), token_values.device))


def tokens_per_pair(counts: Sequence[int]) -> NDArray[np.int64]:
    """Trained tokens of each pair, both sides together, (B,) int64."""
    tokens: NDArray[np.int64] = np.array(counts).reshape(-1, 2).sum(1)
    return tokens


def token_groups(counts: Sequence[int], limit: int, group_size: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of completions with at most ``limit`` tokens each if possible. ``group_size`` 2 keeps pairs together."""
    start, load = 0, 0
    for position in range(0, len(counts), group_size):
        cost = sum(counts[position : position + group_size])
        if position > start and load + cost > limit:
            yield start, position
            start, load = position, 0
        load += cost
    if start < len(counts):
        yield start, len(counts)
