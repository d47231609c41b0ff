"""Laws of the engine: what layout, split, order and neighbours must not change, and what gets gradients."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.errors import OutOfMemoryError, TrainingError
from dpo_core.model import compat
from dpo_core.model.load import disable_dropout
from dpo_core.model.lora import make_trainable
from dpo_core.pair import Pair
from dpo_core.records import StepMetrics
from dpo_core.render.token_dataset import CompletionTokens, TokenPair
from dpo_core.train import logps as logps_module
from dpo_core.train import loop
from dpo_core.train.batching.packing import Batch, Layout, branches, padded_batch, tree_batch
from dpo_core.train.logps import (
    TargetLogps,
    autocast,
    backward,
    completion_logps,
    logsumexp_rows,
    write_logits_gradient,
)
from dpo_core.train.loop import Run, accumulate, steps
from dpo_core.train.loss import LOSSES
from dpo_core.train.reference import OnTheFlyReference, Reference
from tests import tiny

EXACT = {"rtol": 0, "atol": 1e-10}


def run_over(path: Path, model: PreTrainedModel, pairs: list[TokenPair], **changes: Any) -> Run:
    path.mkdir(exist_ok=True)
    split = tiny.rows(path, pairs)
    train = settings(**changes)
    known = tiny.references(path, model, split, precision=train.precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return Run(
        model,
        optimizer,
        split,
        known,
        train,
        token_budget=16384 if train.token_budget == "auto" else train.token_budget,
    )


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({"batch_size": 8, "learning_rate": 1e-2, "lr_schedule": "constant"} | changes)


def gradients_of(run: Run, order: list[int] | None = None) -> torch.Tensor:
    batch = order or list(range(len(run.rows)))
    accumulate(run, batch, [run.rows[index] for index in batch])
    return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["cached", "on_the_fly"])
def test_the_first_step_starts_at_ln_2(
    tmp_path: Path, layout: Layout, lora_rank: int, precision: str, how: str
) -> None:
    model = tiny.llama()
    run = run_over(tmp_path, model, tiny.token_pairs(8), precision=precision)
    known: Reference = tiny.references(tmp_path, model, run.rows, layout, precision)
    policy = make_trainable(model, ModelSettings(lora_rank=lora_rank), seed=0)
    if how == "on_the_fly":
        known = OnTheFlyReference(policy if lora_rank else tiny.llama(), precision)
    first = next(steps(Run(policy, run.optimizer, run.rows, known, run.settings, layout)))
    assert first.values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 1e-4)
    assert first.values["accuracy"] == 0.5 or precision == "bf16"


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"simpo"}))
def test_every_loss_starts_at_its_closed_form(tmp_path: Path, loss: str) -> None:
    first = next(steps(run_over(tmp_path, tiny.llama(), tiny.token_pairs(8), loss=loss)))
    closed = {"ipo": 25.0, "hinge": 1.0}.get(loss, math.log(2))
    assert first.values["dpo_loss"] == pytest.approx(closed, rel=1e-5)


def exact_llama() -> PreTrainedModel:
    return in_float64(tiny.llama(dtype=torch.float64))


def family(name: str) -> PreTrainedModel:
    """A random model of a family, in float64."""
    import transformers

    sizes = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    more: dict[str, dict[str, Any]] = {
        "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
        "Mistral": {"sliding_window": 12},
        "Gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
        "Gemma3Text": {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, **more.get(name, {}))
    causal = name.removesuffix("Text")
    model = getattr(transformers, f"{causal}ForCausalLM")(config)
    # Gemma 2's softcap is refused by SDPA; the oracle computes it in full.
    model.set_attn_implementation("eager" if name == "Gemma2" else "sdpa")
    return in_float64(model.double().eval())


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model with norms that do not go through float32 on their way."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", None) or module.eps
            shift = 1.0 if "Gemma" in type(module).__name__ else 0.0

            def norm(hidden: torch.Tensor, own: Any = module, eps: float = eps, shift: float = shift) -> torch.Tensor:
                return hidden * (hidden.square().mean(-1, keepdim=True) + eps).rsqrt() * (own.weight + shift)

            module.forward = norm
    return model


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3Text"])
def test_a_tree_gives_the_logps_and_gradients_of_padded_rows(name: str) -> None:
    items = [branches(pair) for pair in tiny.token_pairs(5)]
    told = []
    for batch in (tree_batch(items), padded_batch(items)):
        model = family(name)
        backward(
            model, batch, lambda logps, _: (logps * torch.linspace(1, 2, len(logps))).sum(), group_size=len(items) * 2
        )
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        told.append((completion_logps(model, batch), gradients))
    # Gemma 2's eager attention, the only one with its softcap, has a softmax in float32.
    near = {"rtol": 0, "atol": 1e-5} if name == "Gemma2" else EXACT
    assert torch.allclose(told[0][0], told[1][0], **near)
    assert torch.allclose(told[0][1], told[1][1], **near)


def test_recomputed_activations_give_the_same_gradients() -> None:
    items = [branches(pair) for pair in tiny.token_pairs(5)]
    told = []
    for checkpointing in (False, True):
        model = exact_llama()
        if checkpointing:
            compat.recompute_activations(model)
            model.train()
        backward(model, tree_batch(items), lambda logps, _: logps.sum())
        told.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*told, **EXACT)


def test_the_heads_pieces_give_the_gradients_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for tokens in (100_000, 40, 3):
        monkeypatch.setitem(logps_module.MAX_LOGITS, "cpu", tokens * tiny.VOCABULARY)
        model = exact_llama()
        gradients.append(gradients_of(run_over(tmp_path / str(tokens), model, tiny.token_pairs(8))))
    assert torch.allclose(gradients[0], gradients[1], **EXACT)
    assert torch.allclose(gradients[0], gradients[2], **EXACT)


def test_gradients_do_not_depend_on_the_split_into_microbatches(tmp_path: Path) -> None:
    gradients, sums = [], []
    for budget in (1, 200, 100_000):
        model = exact_llama()
        run = run_over(tmp_path / str(budget), model, tiny.token_pairs(8), token_budget=budget)
        batch = list(range(8))
        sums.append(accumulate(run, batch, [run.rows[index] for index in batch])[0])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for other, other_sums in zip(gradients[1:], sums[1:], strict=True):
        assert torch.allclose(gradients[0], other, **EXACT)
        assert torch.allclose(sums[0], other_sums, rtol=1e-9, atol=1e-9)


def test_the_order_inside_a_batch_changes_nothing(tmp_path: Path) -> None:
    told = []
    for number, order in enumerate([list(range(8)), [5, 2, 7, 0, 1, 6, 3, 4]]):
        model = exact_llama()
        told.append(gradients_of(run_over(tmp_path / str(number), model, tiny.token_pairs(8)), order))
    assert torch.allclose(*told, **EXACT)


@pytest.mark.parametrize("layout", [tree_batch, padded_batch])
def test_neighbours_change_no_logp(layout: Any) -> None:
    model, pairs = exact_llama(), tiny.token_pairs(6)
    together = completion_logps(model, layout([branches(pair) for pair in pairs]))
    alone = torch.cat([completion_logps(model, layout([branches(pair)])) for pair in pairs])
    assert torch.allclose(together, alone, **EXACT)


def test_a_changed_chosen_token_leaves_the_rejected_side_alone() -> None:
    model, [pair] = exact_llama(), tiny.token_pairs(1)
    other = pair.sides.chosen.ids.copy()
    other[0] = (other[0] + 1 - 3) % (tiny.VOCABULARY - 3) + 3
    changed = TokenPair(pair.prompt, Pair(CompletionTokens(other, pair.sides.chosen.mask), pair.sides.rejected))
    before, after = (completion_logps(model, tree_batch([branches(one)])) for one in (pair, changed))
    chosen = len(other)
    assert torch.equal(before[chosen:], after[chosen:])
    assert (before[:chosen] != after[:chosen]).any()


def test_logps_are_those_of_transformers_own_loss() -> None:
    model, [pair] = exact_llama(), tiny.token_pairs(1)
    ids = torch.from_numpy(np.concatenate([pair.prompt, pair.sides.chosen.ids]).astype(np.int64))[None]
    labels = ids.clone()
    labels[0, : len(pair.prompt)] = -100
    with torch.no_grad():
        mean_nll = model(input_ids=ids, labels=labels).loss
    length = len(pair.sides.chosen.ids)
    ours = completion_logps(model, tree_batch([branches(pair)]))[:length].sum()
    assert ours.item() == pytest.approx(-mean_nll.item() * length, abs=1e-5)


def test_prompt_tokens_are_not_trained_and_the_first_completion_token_is() -> None:
    model = tiny.llama()
    prompt, tokens = np.array([5, 6, 7], dtype=np.int32), np.array([11], dtype=np.int32)
    completion = CompletionTokens(tokens, np.array([True]))
    batch = tree_batch([branches(TokenPair(prompt, Pair(completion, completion)))])
    hidden = model.model(input_ids=batch.ids[:, :3]).last_hidden_state.detach().requires_grad_(True)
    model.lm_head(hidden.flatten(0, 1)[batch.predictors]).log_softmax(-1)[:, 11].sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad.abs().sum(-1) > 0).tolist() == [[False, False, True]]


def test_dropout_is_off_in_training_mode_too(tmp_path: Path) -> None:
    model = tiny.llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    disable_dropout(model)
    model.train()
    run = run_over(tmp_path, model, tiny.token_pairs(8))
    assert next(steps(run)).values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    batch = tree_batch([branches(pair) for pair in tiny.token_pairs(3)])
    assert torch.equal(completion_logps(model, batch), completion_logps(model, batch))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_what_trains_gets_a_gradient_and_what_is_frozen_stays(tmp_path: Path, lora_rank: int) -> None:
    model = tiny.llama()
    run = run_over(tmp_path, model, tiny.token_pairs(8))
    policy = make_trainable(model, ModelSettings(lora_rank=lora_rank), seed=0)
    for name, value in policy.named_parameters():
        if "lora_B" in name:  # at zero, it would keep A's gradient at zero in the first step
            torch.nn.init.normal_(value, std=0.01)
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    adapted = Run(policy, run.optimizer, run.rows, run.reference, run.settings)
    gradients_of(adapted)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    assert all(torch.equal(p, frozen[name]) for name, p in policy.named_parameters() if name in frozen)


@pytest.mark.parametrize(("lora_rank", "below"), [(0, 0.1), (8, 0.4)])
def test_a_tiny_set_is_learnt_by_heart(tmp_path: Path, lora_rank: int, below: float) -> None:
    model = tiny.llama()
    run = run_over(tmp_path, model, tiny.token_pairs(8), num_epochs=30)
    policy = make_trainable(model, ModelSettings(lora_rank=lora_rank), seed=0)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    history: list[StepMetrics] = list(steps(Run(policy, optimizer, run.rows, run.reference, run.settings)))
    assert history[-1].values["accuracy"] == 1
    assert history[-1].values["dpo_loss"] < below


def test_metrics_of_a_step_are_over_all_its_pairs(tmp_path: Path) -> None:
    told = []
    for budget in (1, 100_000):
        run = run_over(tmp_path / str(budget), tiny.llama(), tiny.token_pairs(8), token_budget=budget, num_epochs=3)
        told.append([metrics.values for metrics in steps(run)])
    for alone, together in zip(*told, strict=True):
        for name in ("dpo_loss", "accuracy", "margin", "chosen_reward", "kl", "grad_norm", "num_pairs", "num_tokens"):
            assert alone[name] == pytest.approx(together[name], rel=2e-3, abs=1e-5), name


def test_a_long_gradient_is_scaled_down(tmp_path: Path) -> None:
    run = run_over(tmp_path, tiny.llama(), tiny.token_pairs(8), max_grad_norm=1e-3)
    gradients_of(run)
    norm = loop.gradient_norm(run.policy)
    loop.clip_gradients(run, norm.item())
    assert loop.gradient_norm(run.policy).item() == pytest.approx(1e-3, rel=1e-4)


def test_memory_that_runs_out_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    run = run_over(tmp_path, tiny.llama(), tiny.token_pairs(8), token_budget=4096)
    monkeypatch.setattr(loop, "backward", full)
    with pytest.raises(OutOfMemoryError, match=r"token_budget=2048, or set activation_checkpointing=true"):
        next(steps(run))


def test_a_step_that_is_not_finite_is_not_applied(tmp_path: Path) -> None:
    model = tiny.llama()
    run = run_over(tmp_path, model, tiny.token_pairs(8))
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"step 1 \(pairs"):
        next(steps(run))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(model.parameters(), before, strict=True))


def test_costs_count_a_prompt_once(tmp_path: Path) -> None:
    run = run_over(tmp_path, tiny.llama(), tiny.token_pairs(8))
    values = next(steps(Run(run.policy, run.optimizer, run.rows, run.reference, run.settings, peak_flops=1e9))).values
    pairs = [run.rows[index] for index in range(8)]
    assert values["num_tokens"] == sum(pair.tokens for pair in pairs)
    assert values["perf/padding_share"] == 0
    assert values["perf/mfu_useful"] > 0
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # two layers: q and o, k and v, the MLP's three
    shape = loop.ModelSizes.of(run.policy)
    assert (shape.body, shape.head) == (body, 64 * 32)


def test_under_autocast_weights_are_cast_once_for_all_microbatches(tmp_path: Path) -> None:
    model, casts = tiny.llama(), 0
    weight = model.model.layers[0].mlp.up_proj.weight
    items = [[branches(pair)] for pair in tiny.token_pairs(4)]

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal casts
            casts += func is torch.ops.aten._to_copy.default and args[0].data_ptr() == weight.data_ptr()
            return func(*args, **(kwargs or {}))

    with Counting(), autocast(torch.device("cpu"), "bf16"):
        for item in items:
            batch: Batch = tree_batch(item)
            backward(model, batch, lambda logps, _: logps.sum())
    assert casts == 1


def test_a_model_without_attention_functions_takes_padded_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo_core.train.batching.batch_layout import tree_obstacle

    model = tiny.llama()
    rows = tiny.rows(tmp_path, tiny.token_pairs(3))
    assert tree_obstacle(model, rows) is None
    monkeypatch.setattr(LlamaForCausalLM, "_supports_attention_backend", False)
    assert tree_obstacle(model, rows) == "LlamaForCausalLM takes no attention function"


def test_the_gradient_in_one_is_the_gradient_row_by_row() -> None:
    torch.manual_seed(0)
    logits, targets, upstream = torch.randn(7, 50), torch.randint(50, (7,)), torch.randn(7)
    leaf = logits.clone().requires_grad_()
    TargetLogps.apply(leaf * 1.0, targets).backward(upstream)
    at_once = logits.clone()
    write_logits_gradient(at_once, targets[:, None], logsumexp_rows(logits)[:, None], upstream[:, None])
    assert torch.allclose(at_once, leaf.grad, atol=1e-6)
