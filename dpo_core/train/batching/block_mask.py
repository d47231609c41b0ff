"""FlexAttention's block mask of a tree row, laid out on the host from the lengths of prompts and completions.

Prefix sharing follows arXiv 2410.20305. PyTorch's own ``create_block_mask`` asks the mask about every pair of
positions, which grows with the square of the row; the blocks of a tree are known from its spans.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dpo_core.train.batching.packing import Span, to_device

BLOCK = 128
# Positions in the tables. Larger tables would be new tensors, and compiled kernels would be compiled anew.
TABLE_LENGTH = 2**17

Blocks = NDArray[np.bool_]
Segment = tuple[int, int]


class TreeMask:
    """The mask of a tree row, the same for every head.

    One function reads tables that are rewritten for each microbatch: a function made anew would be compiled anew. So a
    microbatch's backward pass must be over before the next one begins, as in the training loop.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.conversation, self.branch = (torch.zeros(TABLE_LENGTH, dtype=torch.int32, device=device) for _ in "cb")

        def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own_branch = (self.branch[key] == 0) | (self.branch[key] == self.branch[query])
            return (query >= key) & (self.conversation[query] == self.conversation[key]) & own_branch

        self.sees = sees

    def of(self, spans: tuple[Span, ...], length: int) -> BlockMask:
        """The block mask of a row of ``length`` positions, a multiple of BLOCK on a GPU."""
        if len(self.branch) < length:
            self.conversation, self.branch = (
                torch.zeros(2 * length, dtype=torch.int32, device=self.device) for _ in "cb"
            )
        for table, values in zip((self.conversation, self.branch), segment_tables(spans, length), strict=True):
            table[:length].copy_(to_device(torch.from_numpy(values), self.device))
        visible, full = visible_blocks(spans, length)
        partial, complete = (kv_blocks(mask, self.device) for mask in (visible & ~full, full))
        return BlockMask.from_kv_blocks(
            *partial, *complete, BLOCK_SIZE=BLOCK, mask_mod=self.sees, seq_lengths=(length, length)
        )


@cache
def tree_mask(device: torch.device) -> TreeMask:
    """The mask of a device, made once: compiled kernels keep its tables."""
    return TreeMask(device)


def segment_tables(spans: tuple[Span, ...], length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(length,) int32 each: a position's conversation, and its branch (0: the prompt, 1 and up: the completions).

    Positions after the last conversation have conversation -1.
    """
    conversation, branch = np.full(length, -1, dtype=np.int32), np.zeros(length, dtype=np.int32)
    for index, number, (start, end) in segments(spans):
        conversation[start:end], branch[start:end] = index, number
    return conversation, branch


def segments(spans: tuple[Span, ...]) -> Iterator[tuple[int, int, Segment]]:
    """Conversation, branch and (start, end) positions of every prompt and completion, in the row's order."""
    position = 0
    for index, span in enumerate(spans):
        for number, length in enumerate((span.prompt, *span.completions)):
            yield index, number, (position, position + length)
            position += length


def visible_blocks(spans: tuple[Span, ...], length: int) -> tuple[Blocks, Blocks]:
    """Blocks visible at least in part, and blocks visible in full: (n, n) bool each, query blocks by key blocks."""
    count = -(-length // BLOCK)
    visible, full = np.zeros((count, count), dtype=np.bool_), np.zeros((count, count), dtype=np.bool_)
    prompt: Segment = (0, 0)
    for _, number, segment in segments(spans):
        if number == 0:
            prompt = segment
        elif segment[0] < segment[1] and prompt[0] < prompt[1]:
            visible[overlapped_blocks(segment), overlapped_blocks(prompt)] = True
            full[filled_blocks(segment), filled_blocks(prompt)] = True
        mark_causal(visible, full, segment)
    end = sum(span.tokens for span in spans)
    mark_causal(visible, full, (end, length))
    return visible, full


def mark_causal(visible: Blocks, full: Blocks, segment: Segment) -> None:
    """Mark that each position of a segment sees itself and those before it."""
    if segment[0] < segment[1]:
        within = visible[overlapped_blocks(segment), overlapped_blocks(segment)]
        within |= np.tri(len(within), dtype=np.bool_)
        inside = full[filled_blocks(segment), filled_blocks(segment)]
        inside |= np.tri(len(inside), k=-1, dtype=np.bool_)


def overlapped_blocks(segment: Segment) -> slice:
    """The blocks that hold any position of a segment."""
    return slice(segment[0] // BLOCK, -(-segment[1] // BLOCK))


def filled_blocks(segment: Segment) -> slice:
    """The blocks that hold positions of this segment only."""
    first = -(-segment[0] // BLOCK)
    return slice(first, max(first, segment[1] // BLOCK))


def kv_blocks(mask: Blocks, device: torch.device) -> tuple[Tensor, Tensor]:
    """BlockMask's int32 tables: each query block's number of key blocks (1, 1, n), and their indices (1, 1, n, n)."""
    counts = mask.sum(1, dtype=np.int32)
    indices = np.argsort(~mask, axis=1, kind="stable").astype(np.int32)
    count_table, index_table = (to_device(torch.from_numpy(part), device)[None, None] for part in (counts, indices))
    return count_table, index_table
