"""Decoding: rows do not depend on their neighbors, stop reasons are right, results keep the prompts' order."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dpo_core.inference import decoding, kv_cache
from dpo_core.inference.decoding import DecodedTokens, Decoding, decode
from dpo_core.inference.sampling import SamplingDistribution, filter_logits, sample_tokens
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.render.token_dataset import CompletionTokens as SideOfPair
from dpo_core.train.batching.packing import Branches, build
from dpo_core.train.logps import completion_logps

BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
BOS = 1


@pytest.fixture(scope="module")
def model(stories: Path) -> PreTrainedModel:
    return load_model(stories)


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(stories)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = ["Once", "The dog was", "Tom and Ann went to the big park because", "A", "One day a bird saw a red ball."]
    return [[BOS, *tokenizer.encode(text * count, add_special_tokens=False)] for text in texts for count in (1, 2, 5)]


def sharpen(model: PreTrainedModel) -> PreTrainedModel:
    """Scale random weights so that the likeliest token is far ahead, and rounding cannot change it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def small_models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return {
        "llama": sharpen(LlamaForCausalLM(LlamaConfig(**shape))),
        "sliding window": sharpen(MistralForCausalLM(MistralConfig(**shape, sliding_window=8))),
        "absolute positions": sharpen(
            GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=0))
        ),
    }


def test_greedy_text_is_the_model_cards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    [completion] = decode(model, [[BOS]], Decoding(max_new_tokens=60))
    assert tokenizer.decode(completion.ids).strip().startswith(BEGINNING)


def test_neighbors_change_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    """Rows end at different steps, so that the batch is compacted in between."""
    full_stop = tokenizer.convert_tokens_to_ids(".")
    alone = decode(model, prompts, Decoding(80, frozenset([full_stop]), batch_size=1))
    together = decode(model, prompts, Decoding(80, frozenset([full_stop]), batch_size=len(prompts)))
    assert together == alone
    assert len({len(completion.ids) for completion in alone}) > 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 16, None])
def test_text_is_the_model_cards_at_every_batch_size_and_beside_any_neighbors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], batch_size: int | None
) -> None:
    """Finished rows make room for waiting ones while the others are decoded."""
    full_stop = tokenizer.convert_tokens_to_ids(".")
    decoding = Decoding(60, frozenset([full_stop]), batch_size=batch_size)
    finished: dict[int, DecodedTokens] = {}
    completions = decode(model, [*prompts, [BOS], *prompts], decoding, on_finished=finished.__setitem__)
    assert completions == [finished[index] for index in range(len(completions))]
    text = tokenizer.decode(completions[len(prompts)].ids).strip()
    assert text == BEGINNING[: BEGINNING.index(".") + 1]
    assert completions[: len(prompts)] == completions[len(prompts) + 1 :]


@pytest.mark.parametrize("name", ["llama", "sliding window", "absolute positions"])
def test_batches_equal_transformers_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are prefilled a few at a time, and rows attend in ranges of two."""
    monkeypatch.setattr(kv_cache, "ROWS_PER_RANGE", 2)
    monkeypatch.setattr(decoding, "PROMPT_TOKENS", {"cpu": 36})
    model = small_models()[name]
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 97, (length,), generator=random).tolist() for length in (3, 30, 1, 12, 7)]
    expected_ids = [
        model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        for prompt in prompts
    ]
    stop = int(expected_ids[1][5])
    expected = [cut_at(ids.tolist(), stop) for ids in expected_ids]
    for batch_size in (5, 2):
        assert decode(model, prompts, Decoding(20, frozenset([stop]), batch_size=batch_size)) == expected
    assert {completion.ended for completion in expected} == {True, False}


def test_rows_attend_to_the_columns_of_the_longest_row_of_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of two tokens and two of ten: a call has as many keys as the range's longest row."""
    monkeypatch.setattr(kv_cache, "ROWS_PER_RANGE", 2)
    shapes: list[tuple[int, int]] = []
    attention = kv_cache.sdpa_attention_forward

    def recording(module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> Any:
        shapes.append((query.shape[0], key.shape[2]))
        return attention(module, query, key, *rest, **options)

    monkeypatch.setattr(kv_cache, "sdpa_attention_forward", recording)
    model = small_models()["llama"]
    decode(model, [[5] * 10, [6] * 2, [7] * 10, [8] * 2], Decoding(3, batch_size=4))
    assert shapes == [(2, 3), (2, 11)] * 2 + [(2, 4), (2, 12)] * 2  # two layers, two steps after the prefill


def cut_at(ids: list[int], stop: int) -> DecodedTokens:
    if stop not in ids:
        return DecodedTokens(tuple(ids), ended=False)
    return DecodedTokens(tuple(ids[: ids.index(stop) + 1]), ended=True)


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The string spans several tokens of this tokenizer."""
    stop = "named Lily"
    [completion] = decode(model, [[BOS]], Decoding(200, stop_strings=(stop,), tokenizer=tokenizer))
    assert completion.ended
    assert tokenizer.decode(completion.ids).strip() == BEGINNING[: BEGINNING.index(stop) + len(stop)]


def test_a_model_that_never_stops_is_cut_off(model: PreTrainedModel) -> None:
    [completion] = decode(model, [[BOS]], Decoding(max_new_tokens=30))
    assert (len(completion.ids), completion.ended) == (30, False)


def test_the_context_limits_the_completion(model: PreTrainedModel) -> None:
    """512 positions: 12 tokens fit after 500, none after 512 or more, and a short neighbor is not affected."""
    prompts = [[BOS] + [5] * 499, [BOS] + [5] * 511, [BOS] + [5] * 600, [BOS]]
    completions = decode(model, prompts, Decoding(max_new_tokens=40))
    assert [len(completion.ids) for completion in completions] == [12, 0, 0, 40]
    assert not any(completion.ended for completion in completions)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    alone = decode(model, prompts, Decoding(30, batch_size=1, temperature=1.0, seed=3))
    assert decode(model, prompts, Decoding(30, batch_size=16, temperature=1.0, seed=3)) == alone
    assert decode(model, prompts, Decoding(30, batch_size=16, temperature=1.0, seed=4)) != alone


def test_draws_follow_the_distribution() -> None:
    """4,000 draws at temperature 2 from logits 2·ln p: each share within four standard errors of p."""
    shares = torch.tensor([0.5, 0.3, 0.0, 0.2])
    drawn = sample_tokens(
        (2 * shares.log()).expand(4000, 4), [random.Random(seed) for seed in range(4000)], SamplingDistribution(2.0)
    )
    counts = torch.bincount(drawn, minlength=4) / 4000
    assert torch.all((counts - shares).abs() <= 4 * (shares * (1 - shares) / 4000).sqrt())


def test_draws_stay_within_top_k_and_top_p() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert filter_logits(logits, SamplingDistribution(1.0, top_k=2)).isfinite().tolist() == [[False, True, False, True]]
    assert filter_logits(logits, SamplingDistribution(1.0, top_p=0.65)).isfinite().tolist() == [
        [False, True, False, True]
    ]
    assert filter_logits(logits, SamplingDistribution(1.0, top_p=0.75)).isfinite().tolist() == [
        [False, True, True, True]
    ]
    assert filter_logits(logits, SamplingDistribution(1.0, top_p=0.01)).isfinite().tolist() == [
        [False, True, False, False]
    ]


def test_scores_are_the_trainers_log_probabilities(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    completions = decode(model, prompts, Decoding(25, temperature=1.0, seed=1, batch_size=4, logprobs=3))
    items = [
        Branches(np.array(prompt, dtype=np.int32), (to_completion(completion.ids),))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    expected = completion_logps(model, build("padded", items, model.device))
    logps = [score.logp for completion in completions for score in completion.scores]
    assert logps == pytest.approx(expected.tolist(), abs=2e-4)
    for completion in completions:
        for token, score in zip(completion.ids, completion.scores, strict=True):
            values = [logp for _, logp in score.top]
            assert values == sorted(values, reverse=True)
            assert dict(score.top).get(token, score.logp) == pytest.approx(score.logp, abs=1e-6)
            assert score.logp <= values[0] + 1e-6


def to_completion(ids: tuple[int, ...]) -> SideOfPair:
    return SideOfPair(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))


def test_dropout_is_off_and_the_mode_is_restored() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            attention_dropout=0.5,
        )
    )
    expected = decode(model, [[1, 2, 3]], Decoding(20))
    model.train()
    assert decode(model, [[1, 2, 3]], Decoding(20)) == expected
    assert model.training


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Decoding(10, stop_strings=("\n",))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="token to continue from"):
        decode(small_models()["llama"], [[]], Decoding(10))


@pytest.mark.parametrize("kind", ["llama", "sliding window"])
def test_each_step_reports_the_unfinished_work(kind: str) -> None:
    """Two responses of ten tokens: a tenth of a response each per step, until they are finished."""
    model = small_models()[kind]
    partial: list[float] = []
    decode(model, [[1, 2], [3, 4]], Decoding(10, on_step=partial.append))
    assert partial[:9] == pytest.approx([2 * step / 10 for step in range(1, 10)])
