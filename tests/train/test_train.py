"""What the train stage does when memory runs out in a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import OutOfMemoryError
from dpo_core.records import StepMetrics
from dpo_core.train import loop
from dpo_core.train import train as stage
from dpo_core.train.batching.budget_attempt import BudgetAttempt
from dpo_core.train.checkpoint import checkpoint_state
from dpo_core.train.checkpoint.checkpoint_writer import CheckpointWriter
from dpo_core.train.loop import Run, steps
from dpo_core.train.runtime.setup import adamw
from dpo_core.train.train import save_when_memory_runs_out
from tests import tiny


def made(tmp_path: Path) -> Any:
    model, train = tiny.llama(), TrainSettings(batch_size=4, learning_rate=1e-2)
    split = tiny.rows(tmp_path, tiny.token_pairs(12))
    run = Run(model, adamw(model, train), split, tiny.references(tmp_path, model, split), train)
    named = SimpleNamespace(fingerprint="f")
    request = SimpleNamespace(train=train, fingerprint="f", lineage="l", rendered=named, reference=named)
    return SimpleNamespace(
        run=run,
        log_path=tmp_path,
        request=request,
        renderer=SimpleNamespace(name="r"),
        done=0,
        last=None,
        stop=SimpleNamespace(stop_requested=False),
    )


def test_the_step_before_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = made(tmp_path)
    run, train = session.run, session.request.train
    backward, calls = loop.backward, iter(range(100))

    def full(*given: Any, **named: Any) -> None:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no more")
        backward(*given, **named)

    monkeypatch.setattr(loop, "backward", full)
    done: list[StepMetrics] = []

    def follow() -> None:
        with CheckpointWriter(tmp_path, train, print) as saver, save_when_memory_runs_out(session, saver) as last:
            for metrics in steps(run):
                last.append(metrics)
                done.append(metrics)

    with pytest.raises(OutOfMemoryError, match="token_budget=16384"):
        follow()
    assert [metrics.step for metrics in done] == [1, 2]
    assert [path.name for path in checkpoint_state.newest_first(tmp_path)] == ["000002"]
    assert all(parameter.grad is None for parameter in run.policy.parameters())
    found, wrong = checkpoint_state.latest(tmp_path)
    assert found is not None
    assert (found.step, wrong) == (2, {})


@pytest.mark.parametrize("where", ["optimizer", "evaluation"])
def test_weights_of_half_a_step_are_not_saved_as_those_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Memory runs out in the third step's optimizer, or in the evaluation after it: the last checkpoint stands."""
    session = made(tmp_path)
    step, calls = session.run.optimizer.step, iter(range(100))

    def full(*_: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no more")
        return step() if where == "optimizer" else {}

    if where == "optimizer":
        monkeypatch.setattr(session.run.optimizer, "step", full)
        monkeypatch.setattr(stage, "evaluate_step", lambda *_: {})
    else:
        monkeypatch.setattr(stage, "evaluate_step", full)
    monkeypatch.setattr(stage, "record_step", lambda *_: None)
    display: Any = SimpleNamespace(say=print)
    with pytest.raises(OutOfMemoryError, match="in a step's optimizer or an evaluation") as raised:
        stage.run_steps(session, display, BudgetAttempt(None, 16384))
    assert "token_budget" not in str(raised.value)
    assert checkpoint_state.newest_first(tmp_path) == []
