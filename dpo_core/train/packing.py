"""Microbatches: pairs of like length together, as many as a budget of padded tokens allows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpo_core.pair import Pair
from dpo_core.render.rendered import Completion, TokenPair


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows of prompt and completion, padded on the right.

    ids: (B, T) int64. attention: (B, T) bool, true for real tokens. trained: (B, T − 1) bool, true at positions whose
    *next* token is trained.
    """

    ids: Tensor
    attention: Tensor
    trained: Tensor

    def to(self, device: torch.device) -> "Padded":
        """The same batch on a device."""
        return Padded(self.ids.to(device), self.attention.to(device), self.trained.to(device))

    @property
    def size(self) -> int:
        """Rows × columns, padding included."""
        return self.ids.numel()


def microbatches(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Groups of positions in ``lengths`` (the longer side of each pair), longest first.

    A group's 2 × pairs × longest side stays within the budget; a pair beyond it goes alone.
    """
    groups: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and 2 * longest * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(position)
        else:
            groups.append([position])
            longest = lengths[position]
    return groups


def pad(pairs: list[TokenPair]) -> Padded:
    """The chosen rows of all pairs, then their rejected rows: :func:`sides` takes them apart again."""
    rows = [(pair.prompt, pair.sides.chosen) for pair in pairs] + [(pair.prompt, pair.sides.rejected) for pair in pairs]
    return pad_rows(rows)


def pad_rows(rows: list[tuple[np.ndarray, Completion]]) -> Padded:
    """Prompts and their completions as one padded batch."""
    width = max(len(prompt) + len(completion.ids) for prompt, completion in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    attention = np.zeros((len(rows), width), dtype=np.bool_)
    trained = np.zeros((len(rows), width), dtype=np.bool_)
    for index, (prompt, completion) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion.ids)
        ids[index, :start], ids[index, start:end] = prompt, completion.ids
        attention[index, :end] = True
        trained[index, start:end] = completion.mask
    return Padded(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(trained[:, 1:]))


def sides(rows: Tensor) -> Pair[Tensor]:
    """(2B, …) rows of :func:`pad` as a pair of (B, …)."""
    chosen, rejected = rows.chunk(2)
    return Pair(chosen, rejected)
