import numpy as np
import torch

from dpo_core.pair import Pair
from dpo_core.render.token_dataset import CompletionTokens, TokenPair
from dpo_core.train.batching.packing import (
    branches,
    microbatches,
    padded_batch,
    padded_microbatches,
    sums_by_side,
    token_groups,
    tree_batch,
)
from dpo_core.train.batching.tree_attention import visible_keys

CPU = torch.device("cpu")


def token_pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    def completion(start: int, length: int) -> CompletionTokens:
        return CompletionTokens(np.arange(start, start + length, dtype=np.int32), np.ones(length, dtype=np.bool_))

    return TokenPair(np.arange(1, prompt + 1, dtype=np.int32), Pair(completion(100, chosen), completion(200, rejected)))


def test_microbatches_hold_every_pair_once_within_the_budget() -> None:
    costs = [5, 50, 7, 30, 8, 31]
    groups = microbatches(costs, token_budget=64)
    assert sorted(index for group in groups for index in group) == list(range(len(costs)))
    assert all(sum(costs[place] for place in group) <= 64 for group in groups)
    assert len(groups) == 3


def test_microbatches_are_even() -> None:
    loads = [sum([10] * len(group)) for group in microbatches([10] * 10, token_budget=60)]
    assert loads == [50, 50]


def test_a_pair_beyond_the_budget_goes_alone() -> None:
    assert sorted(map(sorted, microbatches([10, 1000, 10], token_budget=100))) == [[0, 2], [1]]
    assert padded_microbatches([10, 1000, 10], token_budget=100) == [[1], [0, 2]]


def test_padded_microbatches_count_padding() -> None:
    lengths = [5, 50, 7, 30, 8, 31]
    groups = padded_microbatches(lengths, token_budget=128)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[place] for place in group) <= 128 for group in groups)


def test_a_tree_holds_the_prompt_once_and_restarts_positions() -> None:
    batch = tree_batch([branches(token_pair(2, 1, 3)), branches(token_pair(1, 2, 1))])
    assert batch.ids.tolist() == [[1, 2, 100, 200, 201, 202, 1, 100, 101, 200]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 2, 1]]
    assert batch.predictors.tolist() == [1, 1, 3, 4, 6, 7, 6]
    assert batch.targets.tolist() == [100, 200, 201, 202, 100, 101, 200]
    assert batch.counts == (1, 3, 2, 1)


def test_padded_rows_predict_the_same_targets() -> None:
    items = [branches(token_pair(2, 1, 3))]
    batch = padded_batch(items)
    assert batch.ids.tolist() == [[1, 2, 100, 0, 0], [1, 2, 200, 201, 202]]
    assert batch.attention is not None
    assert batch.attention.sum(-1).tolist() == [3, 5]
    assert batch.predictors.tolist() == [1, 6, 7, 8]
    assert batch.targets.tolist() == tree_batch(items).targets.tolist()


def test_untrained_tokens_have_no_predictor() -> None:
    side = CompletionTokens(np.array([7, 8, 9], dtype=np.int32), np.array([True, False, True]))
    pair = TokenPair(np.array([1, 2], dtype=np.int32), Pair(side, side))
    for batch in (tree_batch([branches(pair)]), padded_batch([branches(pair)])):
        assert batch.targets.tolist() == [7, 9, 7, 9]
        assert batch.ids.flatten()[batch.predictors].tolist() == [2, 8, 2, 8]


def test_a_quantum_pads_the_row() -> None:
    batch = tree_batch([branches(token_pair(2, 1, 3))], quantum=8)
    assert batch.size == 8
    assert batch.ids[0, 6:].tolist() == [0, 0]


def test_a_window_is_counted_in_positions() -> None:
    assert visible_keys(2, 3, 2, CPU).tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


def test_sums_by_side() -> None:
    sums = sums_by_side(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), [1, 2, 1, 1])
    assert sums.chosen.tolist() == [1.0, 4.0]
    assert sums.rejected.tolist() == [5.0, 5.0]


def test_token_groups_keep_pairs_whole_within_the_limit() -> None:
    assert list(token_groups([3, 3, 1, 1, 9, 9, 2, 2], limit=8, group_size=2)) == [(0, 4), (4, 6), (6, 8)]
    assert list(token_groups([3, 3, 3], limit=6, group_size=1)) == [(0, 2), (2, 3)]
