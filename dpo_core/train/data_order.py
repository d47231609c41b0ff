"""The order of data: a pure function of seed and epoch, so that resuming needs no replay."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import DataError


def total_steps(pairs: int, train: TrainSettings) -> int:
    """Optimizer steps of a run: whole batches only, at most ``max_steps``.

    Raises DataError when there are fewer pairs than one batch.
    """
    per_epoch = pairs // train.batch_size
    if per_epoch == 0:
        raise DataError(
            f"{pairs} training pairs are fewer than one batch of {train.batch_size}.",
            "A step needs batch_size pairs.",
            f"Set batch_size={pairs} or less, or bring more data.",
        )
    steps = per_epoch * train.num_epochs
    return min(steps, train.max_steps) if train.max_steps else steps


def batch_indices(step: int, pairs: int, train: TrainSettings) -> list[int]:
    """Indices of the pairs of the 0-based ``step``."""
    epoch, position = divmod(step, pairs // train.batch_size)
    start = position * train.batch_size
    chosen: list[int] = permutation(train.seed, epoch, pairs)[start : start + train.batch_size].tolist()
    return chosen


def visited_pairs(pairs: int, train: TrainSettings) -> list[int]:
    """Every pair that the run will see, in ascending order: what the reference has to score."""
    seen = {index for step in range(total_steps(pairs, train)) for index in batch_indices(step, pairs, train)}
    return sorted(seen)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, pairs: int) -> NDArray[np.int64]:
    """The epoch's order."""
    return np.random.default_rng([seed, epoch]).permutation(pairs)
