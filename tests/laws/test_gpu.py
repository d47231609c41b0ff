"""The engine's laws on a GPU, through FlexAttention and compiled layers. Skipped where there is none."""

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dpo_core.model.lora import trainable
from dpo_core.recipe import ModelSettings, TrainSettings
from dpo_core.train import budget, checkpoint, session
from dpo_core.train.compiled import compiled
from dpo_core.train.layout import obstacle
from dpo_core.train.logps import backward, completion_logps
from dpo_core.train.loop import Run, accumulate, steps
from dpo_core.train.packing import branches, build
from dpo_core.train.reference import OnTheFly, References
from tests import tiny

# Read by CUDA's libraries when they are first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SETTINGS = {"batch_size": 8, "learning_rate": 1e-2, "lr_schedule": "constant", "max_steps": 4, "num_epochs": 4}


@pytest.fixture
def deterministic() -> Iterator[None]:
    session.deterministic(True)
    yield
    session.deterministic(False)


def llama(device: torch.device = GPU, dtype: torch.dtype = torch.float32) -> nn.Module:
    """FlexAttention needs heads 16 wide: 64 in all."""
    return tiny.llama(dtype=dtype, hidden_size=64).to(device)


def fresh(path: Path, lora_rank: int = 0, how: str = "cached", **changes: Any) -> Run:
    train = TrainSettings.model_validate(SETTINGS | changes)
    path.mkdir(exist_ok=True)
    split = tiny.rows(path, tiny.token_pairs(16))
    base = llama()
    known: Any = tiny.references(path, base, split, precision=train.precision)
    policy = trainable(base, ModelSettings(lora_rank=lora_rank), seed=0)
    policy = compiled(session.prepared(policy, train), train)
    if how == "on_the_fly":
        known = OnTheFly(policy if lora_rank else llama(), train.precision)
    return Run(policy, session.adamw(policy, train), split, known, train, token_budget=int(train.token_budget))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().cpu()


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["cached", "on_the_fly"])
def test_the_first_step_starts_at_ln_2(tmp_path: Path, lora_rank: int, precision: str, how: str) -> None:
    first = next(steps(fresh(tmp_path, lora_rank, how, precision=precision)))
    assert first.values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-4)


@pytest.mark.parametrize("compile_model", [False, True])
def test_a_trees_logps_and_gradients_are_those_of_padded_rows_in_float64(compile_model: bool) -> None:
    items = [branches(pair) for pair in tiny.token_pairs(12)]
    told = []
    for model, layout, device in ((llama(), "tree", GPU), (llama(CPU, torch.float64), "padded", CPU)):
        if device == GPU:
            compiled(model, TrainSettings(compile_model=compile_model))
        batch = build(layout, items, device)
        logps = completion_logps(model, batch).double().cpu()
        backward(model, batch, lambda logps, _: (logps * torch.linspace(1, 2, len(logps), device=logps.device)).sum())
        told.append((logps, gradients(model)))
    (logps, slope), (exact_logps, exact_slope) = told
    assert (logps - exact_logps).abs().max() < 1e-4
    assert (slope - exact_slope).norm() / exact_slope.norm() < 1e-4


def test_the_tree_is_chosen_on_a_gpu(tmp_path: Path) -> None:
    rows = tiny.rows(tmp_path, tiny.token_pairs(4))
    assert obstacle(llama(), rows) is None
    narrow = tiny.llama().to(GPU)  # heads 8 wide, which FlexAttention may refuse
    assert obstacle(narrow, rows) is None or "refuses" in str(obstacle(narrow, rows))


def test_gradients_do_not_depend_on_the_split_into_microbatches(tmp_path: Path) -> None:
    told = []
    for tokens in (1, 200, 100_000):
        run = fresh(tmp_path / str(tokens), token_budget=tokens)
        accumulate(run, list(range(8)), [run.rows[index] for index in range(8)])
        told.append(gradients(run.policy))
    for other in told[1:]:
        assert (told[0] - other).norm() / told[0].norm() < 1e-4


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    told = []
    for again in (False, True):
        run = fresh(tmp_path / str(again), activation_checkpointing=again)
        accumulate(run, list(range(8)), [run.rows[index] for index in range(8)])
        told.append(gradients(run.policy))
    assert (told[0] - told[1]).norm() / told[0].norm() < 1e-4


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, precision: str) -> None:
    changes = {"precision": precision, "deterministic": True}
    whole = fresh(tmp_path / "whole", **changes)
    told = [metrics.values["dpo_loss"] for metrics in steps(whole)]
    first = fresh(tmp_path / "first", **changes)
    before = [metrics.values["dpo_loss"] for metrics in islice(steps(first), 2)]
    checkpoint.write(tmp_path, checkpoint.snapshot(tmp_path, first.policy, first.optimizer, 2, {"run": "r"}))
    torch._dynamo.reset()  # as another process, which compiles anew
    second = fresh(tmp_path / "second", **changes)
    found, _ = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.load(found.path, second.policy, second.optimizer)
    after = [metrics.values["dpo_loss"] for metrics in steps(second, done=2)]
    assert before + after == told
    for ours, theirs in zip(second.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_budget_is_found_from_the_gpus_memory(tmp_path: Path) -> None:
    run = fresh(tmp_path)
    found = budget.find(run.policy, run.rows, "tree", "bf16")
    assert budget.LEAST < found <= budget.MOST
    assert isinstance(run.references, References)
