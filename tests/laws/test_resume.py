"""Continued from a checkpoint = uninterrupted, to the bit."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from dpo_core.model.lora import trainable
from dpo_core.recipe import ModelSettings, TrainSettings
from dpo_core.render.rendered import Rows
from dpo_core.train import checkpoint, journal
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import References
from tests import tiny

SETTINGS = TrainSettings(batch_size=4, num_epochs=2, learning_rate=1e-2)


def fresh(split: Rows, known: References, lora_rank: int) -> Run:
    policy = trainable(tiny.llama(), ModelSettings(lora_rank=lora_rank), seed=0)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return Run(policy, torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=True), split, known, SETTINGS)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, lora_rank: int) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    known = tiny.references(tmp_path, tiny.llama(), split)
    whole = fresh(split, known, lora_rank)
    told = [metrics.values["dpo_loss"] for metrics in steps(whole)]

    first = fresh(split, known, lora_rank)
    before = [metrics.values["dpo_loss"] for metrics in islice(steps(first), 3)]
    for step in range(1, 4):
        journal.append(tmp_path / "metrics.jsonl", {"step": step})
    checkpoint.save(tmp_path, first.policy, first.optimizer, 3)

    second = fresh(split, known, lora_rank)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.load(found[1], second.policy, second.optimizer)
    after = [metrics.values["dpo_loss"] for metrics in steps(second, done=found[0])]

    assert before + after == told
    for ours, theirs in zip(second.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    run = fresh(split, tiny.references(tmp_path, tiny.llama(), split), 0)
    for metrics in steps(run):
        journal.append(tmp_path / "metrics.jsonl", {"step": metrics.step})
        checkpoint.save(tmp_path, run.policy, run.optimizer, metrics.step)
    last = checkpoint.latest(tmp_path)
    assert last is not None
    weights = last[1] / checkpoint.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    before = checkpoint.latest(tmp_path)
    assert before is not None
    assert (last[0], before[0]) == (6, 5)


def test_a_checkpoint_without_its_journal_is_no_place_to_continue_from(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    run = fresh(split, tiny.references(tmp_path, tiny.llama(), split), 0)
    for metrics in islice(steps(run), 2):
        checkpoint.save(tmp_path, run.policy, run.optimizer, metrics.step)
    assert checkpoint.latest(tmp_path) is None


def test_a_journal_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal.append(path, {"step": 1, "dpo_loss": 0.5})
    with path.open("a") as stream:
        stream.write('{"step": 2, "dpo')
    assert journal.read(path) == [{"step": 1, "dpo_loss": 0.5}]
