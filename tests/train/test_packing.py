import numpy as np

from dpo_core.pair import Pair
from dpo_core.render.rendered import Completion, TokenPair
from dpo_core.train.packing import microbatches, pad, sides


def token_pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    def completion(start: int, length: int) -> Completion:
        return Completion(np.arange(start, start + length, dtype=np.int32), np.ones(length, dtype=np.bool_))

    return TokenPair(np.arange(1, prompt + 1, dtype=np.int32), Pair(completion(100, chosen), completion(200, rejected)))


def test_microbatches_hold_every_pair_once_within_the_budget() -> None:
    lengths = [5, 50, 7, 30, 8, 31]
    groups = microbatches(lengths, token_budget=128)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(2 * len(group) * max(lengths[i] for i in group) <= 128 for group in groups)


def test_a_pair_beyond_the_budget_goes_alone() -> None:
    assert microbatches([10, 1000, 10], token_budget=100) == [[1], [0, 2]]


def test_padding_marks_the_positions_that_predict_trained_tokens() -> None:
    batch = pad([token_pair(2, 1, 3)])
    assert batch.ids.tolist() == [[1, 2, 100, 0, 0], [1, 2, 200, 201, 202]]
    assert batch.attention.sum(-1).tolist() == [3, 5]
    assert sides(batch.trained).chosen.tolist() == [[False, True, False, False]]
    assert sides(batch.trained).rejected.tolist() == [[False, True, True, True]]
