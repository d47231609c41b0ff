"""FlexAttention's block mask of a tree row, laid out on the host from the lengths of prompts and completions.

Prefix sharing follows arXiv 2410.20305. PyTorch's own ``create_block_mask`` asks the mask about every pair of places,
which grows with the square of the row; the blocks of a tree are known from its spans.
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
# Places that the tables have room for: tables that grow are other tensors to compiled kernels.
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
            own = (self.branch[key] == 0) | (self.branch[key] == self.branch[query])
            return (query >= key) & (self.conversation[query] == self.conversation[key]) & own

        self.sees = sees

    def of(self, spans: tuple[Span, ...], length: int) -> BlockMask:
        """The block mask of a row of ``length`` places, a multiple of BLOCK on a GPU."""
        if len(self.branch) < length:
            self.conversation, self.branch = (
                torch.zeros(2 * length, dtype=torch.int32, device=self.device) for _ in "cb"
            )
        for table, values in zip((self.conversation, self.branch), segment_tables(spans, length), strict=True):
            table[:length].copy_(to_device(torch.from_numpy(values), self.device))
        some, whole = visible_blocks(spans, length)
        partly, wholly = (kv_blocks(which, self.device) for which in (some & ~whole, whole))
        return BlockMask.from_kv_blocks(
            *partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=self.sees, seq_lengths=(length, length)
        )


@cache
def tree_mask(device: torch.device) -> TreeMask:
    """The one of this device."""
    return TreeMask(device)


def segment_tables(spans: tuple[Span, ...], length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(length,) int32 each: a place's conversation, and its branch (0 the prompt, 1 … its completions).

    What is left behind the last conversation is one of its own, -1.
    """
    conversation, branch = np.full(length, -1, dtype=np.int32), np.zeros(length, dtype=np.int32)
    for index, number, (start, end) in segments(spans):
        conversation[start:end], branch[start:end] = index, number
    return conversation, branch


def segments(spans: tuple[Span, ...]) -> Iterator[tuple[int, int, Segment]]:
    """Conversation, branch and places of every prompt and completion, as they stand in the row."""
    place = 0
    for index, span in enumerate(spans):
        for number, length in enumerate((span.prompt, *span.completions)):
            yield index, number, (place, place + length)
            place += length


def visible_blocks(spans: tuple[Span, ...], length: int) -> tuple[Blocks, Blocks]:
    """(n, n) each, queries by keys: the blocks of which something is seen, and of those the ones all of which is."""
    count = -(-length // BLOCK)
    some, whole = np.zeros((count, count), dtype=np.bool_), np.zeros((count, count), dtype=np.bool_)
    prompt: Segment = (0, 0)
    for _, number, own in segments(spans):
        if number == 0:
            prompt = own
        elif own[0] < own[1] and prompt[0] < prompt[1]:
            some[overlapped_blocks(own), overlapped_blocks(prompt)] = True
            whole[filled_blocks(own), filled_blocks(prompt)] = True
        mark_causal(some, whole, own)
    end = sum(span.tokens for span in spans)
    mark_causal(some, whole, (end, length))
    return some, whole


def mark_causal(some: Blocks, whole: Blocks, own: Segment) -> None:
    """Mark that a segment's places see themselves and those before them."""
    if own[0] < own[1]:
        within = some[overlapped_blocks(own), overlapped_blocks(own)]
        within |= np.tri(len(within), dtype=np.bool_)
        inside = whole[filled_blocks(own), filled_blocks(own)]
        inside |= np.tri(len(inside), k=-1, dtype=np.bool_)


def overlapped_blocks(segment: Segment) -> slice:
    """The blocks that hold any of its places."""
    return slice(segment[0] // BLOCK, -(-segment[1] // BLOCK))


def filled_blocks(segment: Segment) -> slice:
    """The blocks that hold its places alone."""
    first = -(-segment[0] // BLOCK)
    return slice(first, max(first, segment[1] // BLOCK))


def kv_blocks(which: Blocks, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, (1, 1, n) int32, and which, (1, 1, n, n), those first."""
    counts = which.sum(1, dtype=np.int32)
    indices = np.argsort(~which, axis=1, kind="stable").astype(np.int32)
    of_counts, of_indices = (to_device(torch.from_numpy(part), device)[None, None] for part in (counts, indices))
    return of_counts, of_indices
