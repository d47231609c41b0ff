import pytest

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import DataError
from dpo_core.train import data_order


def test_an_epoch_sees_each_pair_once_and_the_next_in_another_order() -> None:
    settings = TrainSettings(batch_size=4, num_epochs=2)
    assert data_order.total_steps(12, settings) == 6
    epochs = [
        [index for step in steps for index in data_order.batch_indices(step, 12, settings)]
        for steps in (range(3), range(3, 6))
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]


def test_the_last_partial_batch_is_left_out_and_max_steps_ends_earlier() -> None:
    assert data_order.total_steps(160_800, TrainSettings()) == 628
    assert data_order.total_steps(160_800, TrainSettings(max_steps=30)) == 30


def test_only_the_pairs_of_the_steps_taken_are_needed() -> None:
    settings = TrainSettings(batch_size=4, max_steps=2)
    assert data_order.visited_pairs(100, settings) == sorted(
        data_order.batch_indices(0, 100, settings) + data_order.batch_indices(1, 100, settings)
    )


def test_fewer_pairs_than_a_batch_is_an_error_with_the_size_that_works() -> None:
    with pytest.raises(DataError, match=r"7 training pairs are fewer than one batch of 8.*batch_size=7"):
        data_order.total_steps(7, TrainSettings(batch_size=8))
