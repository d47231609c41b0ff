"""Laws of the engine: what the split, padding and neighbours must not change, and what gets gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from dpo_core.model.lora import trainable
from dpo_core.pair import Pair
from dpo_core.recipe import ModelSettings, TrainSettings
from dpo_core.records import StepMetrics
from dpo_core.render.rendered import Completion, TokenPair
from dpo_core.train.logps import completion_logps
from dpo_core.train.loop import Run, accumulate, steps
from dpo_core.train.packing import pad
from tests import tiny


def run_over(path: Path, model: LlamaForCausalLM, pairs: list[TokenPair], settings: TrainSettings) -> Run:
    path.mkdir(exist_ok=True)
    split = tiny.rows(path, pairs)
    known = tiny.references(path, model, split)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return Run(model, optimizer, split, known, settings)


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"batch_size": 8, "learning_rate": 1e-2, "lr_schedule": "constant"} | changes)


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_starts_at_ln_2(tmp_path: Path, lora_rank: int, precision: str) -> None:
    model = tiny.llama()
    run = run_over(tmp_path, model, tiny.token_pairs(8), settings(precision=precision))
    if precision == "bf16":
        run = Run(model, run.optimizer, run.rows, rescored(tmp_path, model, run, precision), run.settings)
    policy = trainable(model, ModelSettings(lora_rank=lora_rank), seed=0)
    first = next(steps(Run(policy, run.optimizer, run.rows, run.references, run.settings)))
    assert first.values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-4)
    assert first.values["accuracy"] == 0.5 or precision == "bf16"


def rescored(path: Path, model: LlamaForCausalLM, run: Run, precision: str) -> object:
    from safetensors.numpy import save_file

    from dpo_core.train.reference import open_references, score

    save_file(
        score(model, run.rows, list(range(len(run.rows))), run.settings.token_budget, precision),
        path / "train.safetensors",
    )
    return open_references(path, "train")


def test_gradients_do_not_depend_on_the_split_into_microbatches(tmp_path: Path) -> None:
    gradients, sums = [], []
    for budget in (1, 200, 100_000):
        model = tiny.llama(dtype=torch.float64)
        run = run_over(tmp_path / str(budget), model, tiny.token_pairs(8), settings(token_budget=budget))
        sums.append(accumulate(run, list(range(8)))[:6])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for other, other_sums in zip(gradients[1:], sums[1:], strict=True):
        assert torch.allclose(gradients[0], other, rtol=0, atol=1e-10)
        assert torch.allclose(sums[0], other_sums, rtol=1e-5, atol=1e-5)


def test_padding_and_neighbours_change_no_logp() -> None:
    model, pairs = tiny.llama(dtype=torch.float64), tiny.token_pairs(6)
    together = pad(pairs)
    with torch.no_grad():
        logps = completion_logps(model, together).sum(-1)
        alone = torch.cat([completion_logps(model, pad([pair])).sum(-1)[:, None] for pair in pairs], dim=1).flatten()
    assert torch.allclose(logps, alone, rtol=0, atol=1e-10)


def test_logps_are_those_of_transformers_own_loss() -> None:
    model, [pair] = tiny.llama(dtype=torch.float64), tiny.token_pairs(1)
    ids = torch.from_numpy(np.concatenate([pair.prompt, pair.sides.chosen.ids]).astype(np.int64))[None]
    labels = ids.clone()
    labels[0, : len(pair.prompt)] = -100
    with torch.no_grad():
        mean_nll = model(input_ids=ids, labels=labels).loss
        ours = completion_logps(model, pad([pair]))[0].sum()
    assert ours.item() == pytest.approx(-mean_nll.item() * len(pair.sides.chosen.ids), abs=1e-5)


def test_prompt_tokens_are_not_trained_and_the_first_completion_token_is() -> None:
    model = tiny.llama()
    prompt, tokens = np.array([5, 6, 7], dtype=np.int32), np.array([11], dtype=np.int32)
    completion = Completion(tokens, np.array([True]))
    batch = pad([TokenPair(prompt, Pair(completion, completion))])
    assert batch.trained.tolist() == [[False, False, True]] * 2
    hidden = model.model(input_ids=batch.ids).last_hidden_state.detach().requires_grad_(True)
    (model.lm_head(hidden[:, :-1][batch.trained]).log_softmax(-1)[:, 11].sum()).backward()
    assert hidden.grad is not None
    assert (hidden.grad.abs().sum(-1) > 0).tolist() == [[False, False, True, False]] * 2


def test_an_untrained_token_inside_a_completion_counts_nothing() -> None:
    model = tiny.llama()
    pair = tiny.token_pairs(1)[0]
    ids = np.array([11, 12, 13], dtype=np.int32)
    masked = Completion(ids, np.array([True, False, True]))
    with torch.no_grad():
        row = completion_logps(model, pad([TokenPair(pair.prompt, Pair(masked, masked))]))[0]
    assert [value != 0 for value in row.tolist()] == [False] * (len(pair.prompt) - 1) + [True, False, True]


def test_dropout_is_off_so_that_two_passes_agree(tmp_path: Path) -> None:
    model = tiny.llama()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    run = run_over(tmp_path, model, tiny.token_pairs(8), settings())
    assert next(steps(run)).values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("lora_rank", "below"), [(0, 0.1), (8, 0.4)])
def test_a_tiny_set_is_learnt_by_heart(tmp_path: Path, lora_rank: int, below: float) -> None:
    model = tiny.llama()
    pairs = tiny.token_pairs(8)
    run = run_over(tmp_path, model, pairs, settings(num_epochs=30))
    policy = trainable(model, ModelSettings(lora_rank=lora_rank), seed=0)
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    history: list[StepMetrics] = list(steps(Run(policy, optimizer, run.rows, run.references, run.settings)))
    assert history[-1].values["accuracy"] == 1
    assert history[-1].values["dpo_loss"] < below
    assert all(torch.equal(p, frozen[name]) for name, p in policy.named_parameters() if name in frozen)


def test_metrics_of_a_step_are_over_all_its_pairs(tmp_path: Path) -> None:
    told = []
    for budget in (1, 100_000):
        run = run_over(
            tmp_path / str(budget), tiny.llama(), tiny.token_pairs(8), settings(token_budget=budget, num_epochs=3)
        )
        told.append([metrics.values for metrics in steps(run)])
    for alone, together in zip(*told, strict=True):
        for name in ("dpo_loss", "accuracy", "margin", "chosen_reward", "kl", "grad_norm", "num_pairs", "num_tokens"):
            assert alone[name] == pytest.approx(together[name], rel=2e-3, abs=1e-5), name
