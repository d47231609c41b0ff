"""The token budget that fits into memory, and what is expected of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.errors import OutOfMemoryError
from dpo_core.model.lora import make_trainable
from dpo_core.render.token_dataset import write_split
from dpo_core.system import gpus
from dpo_core.train.batching import auto_token_budget, budget_attempt, budget_note, memory_estimate
from dpo_core.train.batching.auto_token_budget import BudgetHistory
from dpo_core.train.batching.memory_estimate import MemoryEstimate, Workload, estimate_memory
from dpo_core.train.runtime import setup
from tests import tiny
from tests.conftest import ROOT, shared

GB = 10**9
PLAIN = MemoryEstimate(
    "cpu",
    loaded=GB,
    trained=GB,
    saved=0,
    copies=0,
    token=1e6,
    layer=1e5,
    logits=2 * 10**5,
    at_once=500,
    head=0,
    aside=0,
)


def work(tmp_path: Path, precision: str = "fp32", lora_rank: int = 0, layout: Any = "tree") -> Workload:
    policy = make_trainable(tiny.llama(), ModelSettings(lora_rank=lora_rank), seed=0)
    return Workload(policy, tiny.rows(tmp_path, tiny.token_pairs(8)), layout, precision)


def with_memory(monkeypatch: pytest.MonkeyPatch, free: int, held: int = 0) -> None:
    monkeypatch.setattr(auto_token_budget, "free_memory", lambda _: free)
    monkeypatch.setattr(memory_estimate, "allocated_bytes", lambda _: held)


def test_the_peak_is_the_sum_of_what_is_there_together() -> None:
    states, working = 3 * GB, memory_estimate.WORKSPACE["cpu"]
    activations = int(memory_estimate.SLACK["cpu"] * GB)
    assert PLAIN.peak(1000) == GB + states + working + activations + 10**8
    wide_head = replace(PLAIN, head=GB)
    assert wide_head.peak(1000) == PLAIN.peak(1000) - 10**8 + GB + 500 * 2 * 10**5
    assert wide_head.peak(100) == GB + states + working + activations // 10 + GB + 100 * 2 * 10**5
    assert replace(PLAIN, saved=GB).peak(1000) == PLAIN.peak(1000) + GB
    assert replace(PLAIN, aside=5 * GB).peak(1000) == GB + states + working + 5 * GB
    on_gpu = replace(PLAIN, device="cuda")
    assert on_gpu.peak(1000) == GB + states + memory_estimate.WORKSPACE["cuda"] + GB + 10**8


def test_a_budget_grows_with_the_memory_that_is_free_up_to_what_pays() -> None:
    told = [auto_token_budget.largest_fitting_budget(PLAIN, room) for room in (0, 5 * GB, 5.9 * GB, 50 * GB, 10**15)]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (auto_token_budget.MIN_TOKENS, 2048)
    assert all(tokens % auto_token_budget.TOKENS_MULTIPLE == 0 for tokens in told)
    assert PLAIN.peak(told[2]) <= 5.9 * GB < PLAIN.peak(told[2] + auto_token_budget.TOKENS_MULTIPLE)
    on_gpu = replace(PLAIN, device="cuda")
    assert auto_token_budget.largest_fitting_budget(on_gpu, 10**15) == 65_536
    assert 16_384 < auto_token_budget.largest_fitting_budget(on_gpu, 40 * GB) < 65_536


def test_what_autograd_keeps_is_told_by_the_token(tmp_path: Path) -> None:
    """Every layer keeps its inputs at least; a bf16 copy of each matrix is no token's."""
    found = estimate_memory(work(tmp_path))
    model = tiny.llama()
    assert found.copies == 0
    assert found.token > 2 * 32 * 4 * 10
    assert found.trained == sum(p.numel() for p in model.parameters()) * 4
    half = estimate_memory(work(tmp_path, "bf16"))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    assert matrices * 2 <= half.copies < matrices * 3
    assert half.token < found.token
    adapted = estimate_memory(work(tmp_path, "bf16", lora_rank=4))
    assert adapted.trained < found.trained / 2
    assert adapted.head == 0 < half.head


def test_recomputed_activations_take_less(tmp_path: Path) -> None:
    whole = work(tmp_path)
    plain = estimate_memory(whole)
    setup.prepare_policy(whole.policy, TrainSettings(activation_checkpointing=True))
    recomputed = estimate_memory(whole)
    assert recomputed.token == 2 * 32 * 4 < plain.token
    assert recomputed.layer > plain.layer
    assert whole.policy.training  # as it was


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_largest_microbatch_is_found_with_the_longest_pair(tmp_path: Path, layout: Any) -> None:
    split = work(tmp_path, layout=layout)
    costs = auto_token_budget.pair_costs(split.rows, layout, 2)
    whole = costs[:8].sum() if layout == "tree" else costs.max() * 8
    assert costs.max() < auto_token_budget.largest_microbatch(split, 10**6, [range(8)]) <= whole
    assert auto_token_budget.largest_microbatch(split, 1, [range(8)]) == costs.max()


def test_weights_that_cannot_fit_are_an_error_that_names_who_holds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    auto_token_budget.check_states_fit(PLAIN, 4 * GB)
    with pytest.raises(OutOfMemoryError, match=r"take 4.0 GB, and 3.9 GB are available\. They must fit"):
        auto_token_budget.check_states_fit(PLAIN, int(3.9 * GB))
    busy = gpus.Gpu("H100", (9, 0), GB, 80 * GB, (gpus.GpuProcess(77, "python", 70 * GB),))
    monkeypatch.setattr(gpus, "find_gpu", lambda: busy)
    with pytest.raises(OutOfMemoryError, match=r"process 77 \(python\) holds 70.0 GB"):
        auto_token_budget.check_states_fit(replace(PLAIN, device="cuda"), GB)


def test_an_explicit_budget_is_obeyed_with_a_warning_of_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, free=10**12)
    quiet = auto_token_budget.plan(work(tmp_path), 100_000, BudgetHistory(), [range(8)])
    assert (quiet.tokens, quiet.auto, quiet.lines) == (100_000, False, ())
    assert "100,000 tokens a microbatch, about 0." in str(quiet)
    with_memory(monkeypatch, free=10**7)
    told = auto_token_budget.plan(work(tmp_path), 100_000, BudgetHistory(), [range(8)])
    assert told.tokens == 100_000
    assert re.search(r"Warning: about .* GB are expected with token_budget=100000, .* 256 would fit", told.lines[0])


def request(tmp_path: Path) -> Any:
    (tmp_path / "config.json").write_text("{}")
    train = TrainSettings(batch_size=4)
    write_split(tmp_path / "test.arrow", tiny.token_pairs(8))
    types = {"export_dtype": "float32", "frozen_dtype": "float32"}
    rendered = SimpleNamespace(path=tmp_path)
    return SimpleNamespace(train=train, log_path=tmp_path, samples=8, max_new_tokens=16, rendered=rendered, **types)


def test_sampling_is_planned_for_prompts_that_nothing_cuts(tmp_path: Path) -> None:
    asked, split = request(tmp_path), tiny.rows(tmp_path, tiny.token_pairs(8))
    pairs = tiny.token_pairs(4)
    write_split(tmp_path / "test.arrow", [replace(pairs[0], whole_prompt=np.arange(900, dtype=np.int32)), *pairs[1:]])
    assert setup.workload(asked, tiny.llama(), split, "tree").sampled == 4 * (16 + 900)
    asked.train = TrainSettings(batch_size=4, infrequent_eval_every=0)
    assert setup.workload(asked, tiny.llama(), split, "tree").sampled == 0


def test_the_export_counts_beyond_what_training_gives_back(tmp_path: Path) -> None:
    """Adapters on frozen weights: these in float32, then what is written beside what is read back. Where every weight
    trains, the moments that are given back are more."""
    whole, adapted = work(tmp_path), work(tmp_path, lora_rank=4)
    held = sum(p.numel() * 4 for p in adapted.policy.parameters())
    trained = estimate_memory(adapted).trained
    assert memory_estimate.export_bytes(replace(adapted, exported=8), trained) == held - 3 * trained
    halves = replace(adapted, policy=adapted.policy.to(torch.bfloat16), exported=4)
    assert memory_estimate.export_bytes(halves, trained // 2) == held // 2 - 3 * (trained // 2)
    assert memory_estimate.export_bytes(replace(whole, exported=8), estimate_memory(whole).trained) == 0
    assert memory_estimate.export_bytes(adapted, trained) == 0


def test_auto_is_the_default_and_is_kept_for_the_runs_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, split = request(tmp_path), tiny.rows(tmp_path, tiny.token_pairs(8))
    with_memory(monkeypatch, free=10**12)
    first = setup.plan_token_budget(asked, tiny.llama(), split, "tree")
    assert (first.tokens, first.auto) == (2048, True)
    assert "2,048 tokens a microbatch (auto), about 0.2 GB expected of 1000.0 GB free" in str(first)
    with_memory(monkeypatch, free=10**7)
    assert setup.plan_token_budget(asked, tiny.llama(), split, "tree").tokens == 2048
    assert json.loads((tmp_path / "config.json").read_text())["token_budget"] == 2048


def test_a_run_that_memory_ended_goes_on_with_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, split = request(tmp_path), tiny.rows(tmp_path, tiny.token_pairs(8))
    with_memory(monkeypatch, free=10**12)
    setup.plan_token_budget(asked, tiny.llama(), split, "tree")
    budget_attempt.BudgetAttempt(tmp_path / budget_note.NOTE, 2048).write(ran_out=True)
    again = setup.plan_token_budget(asked, tiny.llama(), split, "tree")
    assert again.tokens == 1024
    assert "Memory ended the last try with token_budget=2048: this one takes 1024." in again.lines[0]
    assert "bits" in again.lines[0]
    assert json.loads((tmp_path / "config.json").read_text())["token_budget"] == 1024


SHAPES = {
    "full, fp32, tree": ("0", "fp32", "tree"),
    "LoRA, bf16, tree": ("16", "bf16", "tree"),
    "LoRA, bf16, padded": ("16", "bf16", "padded"),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_predicted_peak_is_the_measured_one_within_a_fifth(
    shape: str, tmp_path: Path, stories: Path, write_jsonl: Callable[..., Path]
) -> None:
    """The train stage as users run it, on a Llama of 25 million parameters and real text."""
    lora_rank, precision, layout = SHAPES[shape]
    model = tmp_path / "model"
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, max_position_embeddings=2048, **sizes)).save_pretrained(model)
    AutoTokenizer.from_pretrained(stories).save_pretrained(model)
    words = f"lora_rank={lora_rank} precision={precision} layout={layout} max_length=600 batch_size=4 max_steps=2"
    words += " tasks=none test_size=8 num_samples=1 max_new_tokens=16 renderer_name=role_colon log_path=log"
    source = shared("data", "ultrafeedback", "train_prefs_first400.jsonl")
    told = subprocess.run(
        [sys.executable, "-m", "dpo_core", "train", f"dataset={source}", f"model_name={model}", *words.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    log = (tmp_path / "log" / "logs.log").read_text()
    predicted = float(re.search(r"about ([\d.]+) GB expected", log)[1])  # type: ignore[index]
    journal = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    measured = journal[-1]["perf/peak_memory_gb"]
    print(f"{shape}: predicted {predicted}, measured {measured:.2f}")
    assert abs(predicted - measured) < 0.2 * measured
    assert not (tmp_path / "log" / budget_note.NOTE).exists()
