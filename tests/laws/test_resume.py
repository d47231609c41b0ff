"""Continued from a checkpoint = uninterrupted, to the bit."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.model.lora import make_trainable
from dpo_core.render.token_dataset import TokenDataset
from dpo_core.train.checkpoint import checkpoint_state, journal
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import CachedReference
from tests import tiny

SETTINGS = TrainSettings(batch_size=4, num_epochs=2, learning_rate=1e-2)


def fresh(split: TokenDataset, known: CachedReference, lora_rank: int) -> Run:
    policy = make_trainable(tiny.llama(), ModelSettings(lora_rank=lora_rank), seed=0)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return Run(policy, torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=True), split, known, SETTINGS)


def save(path: Path, run: Run, step: int) -> Path:
    return checkpoint_state.write(
        path, checkpoint_state.take_snapshot(path, run.policy, run.optimizer, step, {"run": "r"})
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run of six steps with a checkpoint of each."""
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    run = fresh(split, tiny.references(tmp_path, tiny.llama(), split), 0)
    for metrics in steps(run):
        journal.append(tmp_path / "metrics.jsonl", journal.to_row(metrics))
        save(tmp_path, run, metrics.step)
    return tmp_path


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, lora_rank: int) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    known = tiny.references(tmp_path, tiny.llama(), split)
    whole = fresh(split, known, lora_rank)
    told = [metrics.values["dpo_loss"] for metrics in steps(whole)]

    first = fresh(split, known, lora_rank)
    before = [metrics.values["dpo_loss"] for metrics in islice(steps(first), 3)]
    save(tmp_path, first, 3)

    second = fresh(split, known, lora_rank)
    torch.manual_seed(99)  # another process's generator
    found, _ = checkpoint_state.latest(tmp_path)
    assert found is not None
    checkpoint_state.load(found.path, second.policy, second.optimizer)
    after = [metrics.values["dpo_loss"] for metrics in steps(second, done=found.step)]

    assert before + after == told
    for ours, theirs in zip(second.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (
        checkpoint_state.optimizer_moments(checkpoint_state.trainable_parameters(run.policy), run.optimizer)
        for run in (second, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_snapshot_is_out_of_reach_of_later_steps(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    run = fresh(split, tiny.references(tmp_path, tiny.llama(), split), 0)
    going = steps(run)
    next(going)
    held = checkpoint_state.take_snapshot(tmp_path, run.policy, run.optimizer, 1, {"run": "r"})
    before = {name: value.clone() for name, value in (held.weights | held.moments).items()}
    next(going)
    assert all(torch.equal(value, before[name]) for name, value in (held.weights | held.moments).items())


@pytest.mark.parametrize(
    "part", [checkpoint_state.WEIGHTS, checkpoint_state.OPTIMIZER, checkpoint_state.RANDOM, checkpoint_state.STATE]
)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(saved: Path, part: str, how: str) -> None:
    damage(saved / "checkpoints" / "000006" / part, how)
    found, wrong = checkpoint_state.latest(saved)
    assert found is not None
    assert (found.step, list(wrong)) == (5, ["000006"])
    assert "damaged" in wrong["000006"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    path.unlink()
    if how != "gone":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data) if how == "flipped" else bytes(data[: len(data) // 2]))


def test_a_checkpoint_is_no_place_to_continue_from_when_the_journal_before_it_is_not_what_it_was(saved: Path) -> None:
    lines = (saved / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"dpo_loss", b"dpo_losz")
    (saved / "metrics.jsonl").write_bytes(b"".join(lines))
    found, wrong = checkpoint_state.latest(saved)
    assert found is not None
    assert found.step == 3
    assert wrong["000006"] == "metrics.jsonl has changed before step 6"
    (saved / "metrics.jsonl").unlink()
    assert checkpoint_state.latest(saved)[0] is None


def test_what_came_after_the_checkpoint_is_taken_out(saved: Path) -> None:
    whole = (saved / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damage(saved / "checkpoints" / "000006" / checkpoint_state.WEIGHTS, "cut")
    (saved / "checkpoints" / ".000007").mkdir()
    checkpoint_state.truncate_run(saved, checkpoint_state.latest(saved)[0])
    assert (saved / "metrics.jsonl").read_bytes() == b"".join(whole[:5])
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == [f"{step:06d}" for step in range(1, 6)]
    assert [row["step"] for row in journal.read(saved / "checkpoints.jsonl")] == [1, 2, 3, 4, 5]


def test_a_journal_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal.append(path, {"step": 1, "dpo_loss": 0.5})
    with path.open("a") as stream:
        stream.write('{"step": 2, "dpo')
    assert journal.read(path) == [{"step": 1, "dpo_loss": 0.5}]
