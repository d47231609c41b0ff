"""Checkpoints behind the training's back: one at a time, as many as asked for, failures told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import RecipeError, TrainingError
from dpo_core.records import StepMetrics
from dpo_core.train.checkpoint import checkpoint_state, checkpoint_writer, journal
from dpo_core.train.checkpoint.checkpoint_state import Snapshot
from dpo_core.train.checkpoint.checkpoint_writer import CheckpointWriter


def held(step: int, **facts: Any) -> Snapshot:
    value = {"w": torch.full((2,), float(step))}
    return Snapshot(step, value, value, {"cpu": torch.get_rng_state()}, {}, facts)


def kept(path: Path) -> list[int]:
    return [int(found.name) for found in checkpoint_state.newest_first(path)]


def saved(path: Path, values: list[float], **settings: Any) -> list[int]:
    with CheckpointWriter(path, TrainSettings(**settings), print) as writer:
        for step, value in enumerate(values, 1):
            writer.save(held(step, **{checkpoint_writer.METRIC: {"test/accuracy": value}}))
        writer.wait()
    return kept(path)


def test_the_latest_stay_and_all_of_them_if_asked(tmp_path: Path) -> None:
    assert saved(tmp_path / "some", [0.5] * 5, keep_checkpoints=2) == [5, 4]
    assert saved(tmp_path / "all", [0.5] * 5, keep_checkpoints=0) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(("metric", "best"), [("test/accuracy", 2), ("-test/accuracy", 1)])
def test_the_best_stays_too(tmp_path: Path, metric: str, best: int) -> None:
    assert saved(tmp_path, [0.1, 0.9, 0.5, 0.5, 0.5], keep_checkpoints=2, best_metric=metric) == [5, 4, best]


def test_a_best_step_is_saved_whenever_it_is_measured(tmp_path: Path) -> None:
    """Values rise, fall and rise again; a saver that starts anew knows what the checkpoints have noted."""
    settings = TrainSettings(best_metric="-test/nll", save_every=0)

    def best(writer: CheckpointWriter, values: list[float]) -> list[bool]:
        return [writer.is_best(StepMetrics(step=1, time=0.0, values={"test/nll": value})) for value in values]

    with CheckpointWriter(tmp_path, settings, print) as first:
        assert not first.is_best(StepMetrics(step=1, time=0.0, values={"accuracy": 1.0}))
        assert best(first, [1.0, 0.9, 0.9, 0.95]) == [True, True, False, False]
        first.save(held(4, **{checkpoint_writer.METRIC: {"test/nll": 0.9}}))
    with CheckpointWriter(tmp_path, settings, print) as second:
        assert best(second, [0.95, 0.8]) == [False, True]


def test_a_best_metric_that_is_not_measured_is_refused() -> None:
    before = StepMetrics(step=0, time=0.0, values={"test/accuracy": 0.5})
    checkpoint_writer.check_best_metric("test/accuracy", before)
    checkpoint_writer.check_best_metric("-dpo_loss", before)
    checkpoint_writer.check_best_metric(None, before)
    with pytest.raises(RecipeError, match="Did you mean test/accuracy"):
        checkpoint_writer.check_best_metric("test/acuracy", before)
    with pytest.raises(RecipeError, match="best_metric=-dpo_los is not measured"):
        checkpoint_writer.check_best_metric("-dpo_los", StepMetrics(step=1, time=0.0, values={"dpo_loss": 0.5}))


def test_a_checkpoint_notes_the_metric_of_its_step_if_the_step_has_it() -> None:
    step = StepMetrics(step=2, time=0.0, values={"test/accuracy": 0.7})
    assert checkpoint_writer.best_metric_facts("-test/accuracy", step) == {
        checkpoint_writer.METRIC: {"test/accuracy": 0.7}
    }
    assert (
        checkpoint_writer.best_metric_facts("test/nll", step) == checkpoint_writer.best_metric_facts(None, step) == {}
    )


def test_cadences_by_step_and_by_clock(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, TrainSettings(save_every=3), print) as by_step:
        assert [step for step in range(1, 7) if by_step.due(step)] == [3, 6]
    with CheckpointWriter(tmp_path, TrainSettings(save_every=0, save_every_minutes=1), print) as by_clock:
        assert not by_clock.due(1)
        by_clock.last -= 61
        assert by_clock.due(2)


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_stops_the_run_and_the_checkpoint_before_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointWriter(tmp_path, TrainSettings(), print) as writer:
        writer.save(held(1))
        writer.wait()
        monkeypatch.setattr(checkpoint_state, "save_file", refuse)
        writer.save(held(2))
        with pytest.raises(TrainingError, match=r"step 2 could not be written: No space left .* The one of step 1 st"):
            writer.wait()
    assert kept(tmp_path) == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_or_the_run_goes_on_if_the_recipe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with CheckpointWriter(tmp_path, TrainSettings(on_save_error="continue"), told.append) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_state, "save_file", refuse)
            writer.save(held(1))
            writer.wait()
        writer.save(held(2))
        writer.wait()
    assert "step 1 could not be written" in told[0]
    assert [row["step"] for row in journal.read(tmp_path / "checkpoints.jsonl")] == kept(tmp_path) == [2]
