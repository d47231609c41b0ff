"""Scoring the reference in windows, and lengths without tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_core.train import reference
from dpo_core.train.batching.batch_layout import longest_sequence
from dpo_core.train.batching.packing import branches
from dpo_core.train.reference import LOGPS, OFFSETS, score_pairs
from tests import tiny


def test_windows_give_the_scores_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = tiny.llama(dtype=torch.float64), tiny.rows(tmp_path, tiny.token_pairs(11))
    told = []
    for size in (100, 4):
        monkeypatch.setattr(reference, "PAIRS_PER_WINDOW", size)
        told.append(score_pairs(model, split, list(range(11)), "tree", "fp32"))
    assert np.array_equal(told[0][OFFSETS], told[1][OFFSETS])
    assert np.allclose(told[0][LOGPS], told[1][LOGPS], rtol=0, atol=1e-6)


def test_lengths_are_those_of_the_tokens(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(11))
    prompt, sides = split.lengths()
    pairs = [split[index] for index in range(len(split))]
    assert (prompt + sides.chosen + sides.rejected).tolist() == [branches(pair).tokens for pair in pairs]
    assert longest_sequence(split) == max(pair.longest for pair in pairs)
