"""The training engine's laws on a GPU, through FlexAttention and compiled layers. Skipped without a GPU.

Compilation takes seconds, so tests of one configuration share a policy; no test changes its weights.
"""

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.model.lora import make_trainable
from dpo_core.pair import Pair
from dpo_core.render.token_dataset import CompletionTokens, TokenPair
from dpo_core.train.batching import auto_token_budget
from dpo_core.train.batching.batch_layout import tree_obstacle
from dpo_core.train.batching.memory_estimate import Workload
from dpo_core.train.batching.packing import branches, build
from dpo_core.train.checkpoint import checkpoint_state
from dpo_core.train.logps import backward, completion_logps
from dpo_core.train.loop import Run, accumulate, steps
from dpo_core.train.reference import OnTheFlyReference
from dpo_core.train.runtime import setup
from dpo_core.train.runtime.compile_layers import compile_policy, uncompiled
from tests import tiny

# CUDA's libraries read it at their first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SETTINGS = {
    "batch_size": 8,
    "learning_rate": 1e-2,
    "lr_schedule": "constant",
    "max_steps": 4,
    "num_epochs": 4,
    "token_budget": 16_384,
}
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-4}


@pytest.fixture
def deterministic() -> Iterator[None]:
    setup.set_deterministic(True)
    yield
    setup.set_deterministic(False)


def llama(device: torch.device = GPU, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny Llama of hidden size 64: FlexAttention needs heads of size 16."""
    return tiny.llama(dtype=dtype, hidden_size=64).to(device)


def new_policy(lora_rank: int, train: TrainSettings) -> nn.Module:
    dtype = torch.bfloat16 if lora_rank and train.precision == "bf16" else torch.float32
    policy = make_trainable(llama(dtype=dtype), ModelSettings(lora_rank=lora_rank), seed=0)
    return compile_policy(setup.prepare_policy(policy, train), train)


@cache
def policy_of(lora_rank: int, precision: str) -> nn.Module:
    """A policy that is shared by all tests that do not change its weights."""
    return new_policy(lora_rank, TrainSettings.model_validate(SETTINGS | {"precision": precision}))


def run_of(path: Path, policy: nn.Module, reference: str = "cached", **changes: Any) -> Run:
    train = TrainSettings.model_validate(SETTINGS | changes)
    path.mkdir(exist_ok=True)
    split = tiny.rows(path, tiny.token_pairs(16))
    adapted = hasattr(policy, "disable_adapter")
    frozen = llama(dtype=torch.bfloat16 if adapted and train.precision == "bf16" else torch.float32)
    if reference == "on_the_fly":
        references: Any = OnTheFlyReference(policy if adapted else frozen, train.precision)
    else:
        references = tiny.references(path, frozen, split, precision=train.precision)  # type: ignore[arg-type]
    return Run(policy, setup.adamw(policy, train), split, references, train, token_budget=int(train.token_budget))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().cpu()


def batch_gradients(run: Run) -> tuple[float, torch.Tensor]:
    """The loss and the gradients of the first eight pairs."""
    run.optimizer.zero_grad(set_to_none=True)
    sums, _ = accumulate(run, list(range(8)), [run.rows[index] for index in range(8)])
    return sums[0].item() / 8, gradients(run.policy)


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_starts_at_ln_2(tmp_path: Path, lora_rank: int, precision: str) -> None:
    for reference in ("cached", "on_the_fly"):
        run = run_of(tmp_path / reference, policy_of(lora_rank, precision), reference, precision=precision)
        assert batch_gradients(run)[0] == pytest.approx(math.log(2), abs=TOLERANCE[precision]), reference


@pytest.mark.parametrize("compile_layers", [False, True])
def test_logps_and_gradients_of_the_tree_layout_equal_those_of_padded_rows_in_float64(compile_layers: bool) -> None:
    items = [branches(pair) for pair in tiny.token_pairs(12)]
    results = []
    for model, layout, device in ((policy_of(0, "fp32"), "tree", GPU), (llama(CPU, torch.float64), "padded", CPU)):
        model.zero_grad(set_to_none=True)
        batch = build(layout, items, device)
        with nullcontext() if compile_layers else uncompiled(model):
            logps = completion_logps(model, batch).double().cpu()
            backward(
                model, batch, lambda logps, _: (logps * torch.linspace(1, 2, len(logps), device=logps.device)).sum()
            )
        results.append((logps, gradients(model)))
    (logps, slope), (exact_logps, exact_slope) = results
    assert (logps - exact_logps).abs().max() < 1e-4
    assert (slope - exact_slope).norm() / exact_slope.norm() < 1e-4


def test_every_layer_shares_one_compilation(tmp_path: Path) -> None:
    train = TrainSettings.model_validate(SETTINGS | {"precision": "bf16"})
    run = run_of(tmp_path, new_policy(4, train), precision="bf16")
    torch._dynamo.reset()
    counters.clear()
    batch_gradients(run)
    assert counters["stats"]["unique_graphs"] <= 3  # the layers', the head's probabilities and their gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tree_layout_is_possible_on_a_gpu(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = tiny.rows(tmp_path, tiny.token_pairs(4))
    assert tree_obstacle(llama(dtype=dtype), rows) is None
    narrow = tiny.llama().to(GPU)  # heads of size 8, which FlexAttention may refuse
    assert tree_obstacle(narrow, rows) is None or "refuses" in str(tree_obstacle(narrow, rows))


def test_gradients_do_not_depend_on_the_split_into_microbatches(tmp_path: Path) -> None:
    results = [
        batch_gradients(run_of(tmp_path / str(tokens), policy_of(0, "fp32"), token_budget=tokens))[1]
        for tokens in (1, 200, 100_000)
    ]
    for other in results[1:]:
        assert (results[0] - other).norm() / results[0].norm() < 1e-4


@pytest.mark.parametrize("compile_model", [False, True])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, lora_rank: int, compile_model: bool) -> None:
    _, kept = batch_gradients(run_of(tmp_path / "kept", policy_of(lora_rank, "fp32")))
    changes: Any = {"activation_checkpointing": True, "compile_model": compile_model}
    again = new_policy(lora_rank, TrainSettings.model_validate(SETTINGS | changes))
    _, recomputed = batch_gradients(run_of(tmp_path / "recomputed", again, **changes))
    assert (kept - recomputed).norm() / kept.norm() < 1e-4


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("precision", "lora_rank"), [("fp32", 0), ("bf16", 0), ("bf16", 4)])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, precision: str, lora_rank: int) -> None:
    changes: Any = {"precision": precision, "deterministic": True}
    train = TrainSettings.model_validate(SETTINGS | changes)
    uninterrupted = run_of(tmp_path / "whole", new_policy(lora_rank, train), **changes)
    results = [metrics.values["dpo_loss"] for metrics in steps(uninterrupted)]
    first = run_of(tmp_path / "first", new_policy(lora_rank, train), **changes)
    before = [metrics.values["dpo_loss"] for metrics in islice(steps(first), 2)]
    checkpoint_state.write(
        tmp_path, checkpoint_state.take_snapshot(tmp_path, first.policy, first.optimizer, 2, {"run": "r"})
    )
    torch._dynamo.reset()  # as in a new process, which compiles again
    second = run_of(tmp_path / "second", new_policy(lora_rank, train), **changes)
    checkpoint, _ = checkpoint_state.latest(tmp_path)
    assert checkpoint is not None
    checkpoint_state.load(checkpoint.path, second.policy, second.optimizer)
    after = [metrics.values["dpo_loss"] for metrics in steps(second, done=2)]
    assert before + after == results
    for resumed_weight, weight in zip(second.policy.parameters(), uninterrupted.policy.parameters(), strict=True):
        assert torch.equal(resumed_weight, weight)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_predicted_peak_is_the_measured_one(tmp_path: Path, lora_rank: int) -> None:
    """On a model and microbatches so large that the allocator's rounding is negligible."""
    torch._dynamo.reset()
    train = TrainSettings.model_validate(SETTINGS | {"precision": "bf16", "batch_size": 64, "num_epochs": 1})
    config = LlamaConfig(
        vocab_size=8_000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.cuda.empty_cache()
    base = LlamaForCausalLM(config).to(GPU, torch.bfloat16 if lora_rank else torch.float32).eval()
    split = tiny.rows(tmp_path, [long_pair(seed) for seed in range(128)])
    policy = setup.prepare_policy(make_trainable(base, ModelSettings(lora_rank=lora_rank), seed=0), train)
    work = Workload(policy, split, "tree", "bf16")
    plan = auto_token_budget.plan(
        work, 16_384, auto_token_budget.BudgetHistory(), auto_token_budget.first_batches(len(split), train)
    )
    references: Any = tiny.references(tmp_path, base, split, precision="bf16")
    torch.cuda.reset_peak_memory_stats()
    run = Run(compile_policy(policy, train), setup.adamw(policy, train), split, references, train, token_budget=16_384)
    for _ in steps(run):
        pass
    measured = torch.cuda.max_memory_allocated()
    print(f"predicted {plan.expected / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB")
    assert 0.8 < plan.expected / measured < 1.2


def long_pair(seed: int) -> TokenPair:
    """A token pair of 256 + 128 + 128 tokens."""
    rng = np.random.default_rng(seed)
    prompt, chosen, rejected = (rng.integers(3, 8_000, length).astype(np.int32) for length in (256, 128, 128))
    return TokenPair(
        prompt, Pair(chosen, rejected).map(lambda ids: CompletionTokens(ids, np.ones(len(ids), dtype=np.bool_)))
    )
