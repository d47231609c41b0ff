"""Training session on given token pairs and a Llama of a given shape, set up by dpo_core's own stages."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from dpo_core.cache.store import Store
from dpo_core.config.recipe import ModelSettings, Recipe, TrainSettings
from dpo_core.pair import Pair
from dpo_core.pipeline import stage_calls
from dpo_core.records import DataReport, ModelSource, ReferenceSet, RenderedSet
from dpo_core.render.token_dataset import CompletionTokens, TokenPair, write_split
from dpo_core.stages.score_reference import ScoreRequest
from dpo_core.stages.train import TrainRequest
from dpo_core.train import reference
from dpo_core.train.data_order import permutation
from dpo_core.train.runtime.setup import Session, start_session
from dpo_core.train.runtime.signals import StopFlag

HELD_OUT = 8


@dataclass(frozen=True)
class Setup:
    """Configuration of a benchmark's run: the Llama's ``config``, and the recipe's two relevant sections."""

    config: dict[str, Any]
    model: ModelSettings
    train: TrainSettings

    @property
    def frozen_dtype(self) -> str:
        """Type of the frozen weights."""
        return stage_calls.frozen_dtype(Recipe(model=self.model, train=self.train))


def random_model(setup: Setup) -> PreTrainedModel:
    """A Llama with weights from a fixed seed, on the GPU where there is one, in ``frozen_dtype``."""
    torch.manual_seed(0)
    config = LlamaConfig(**setup.config, max_position_embeddings=16_384, bos_token_id=1, eos_token_id=2)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM(config).to(getattr(torch, setup.frozen_dtype))


def benchmark_session(directory: Path, setup: Setup, rows: list[dict[str, list[int]]]) -> tuple[Session, float]:
    """The session, ready for its first step, and the seconds that loading and scoring the reference took.

    Weights and pairs are written to ``directory``. The run visits the pairs in the order of ``rows``.
    """
    source, rendered = write_model(directory / "model", setup), write_pairs(directory / "rendered", rows, setup.train)
    started = time.perf_counter()
    scored = score(directory, source, rendered, setup)
    scoring = time.perf_counter() - started
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    log_path = directory / "run"
    log_path.mkdir()
    return start_session(to_request(log_path, source, rendered, scored, setup), StopFlag()), scoring


def to_request(
    log_path: Path, source: ModelSource, rendered: RenderedSet, scored: ReferenceSet, setup: Setup
) -> TrainRequest:
    """The train stage's request."""
    return TrainRequest(
        rendered=rendered,
        reference=scored,
        model=source,
        settings=setup.model,
        train=setup.train,
        on_the_fly=setup.train.reference_mode == "on_the_fly",
        frozen_dtype=setup.frozen_dtype,
        samples=0,
        max_new_tokens=1,
        log_path=log_path,
        fingerprint="benchmark",
        lineage="benchmark",
        recipe={},
    )


def write_model(path: Path, setup: Setup) -> ModelSource:
    """Write a model directory with random weights and a minimal tokenizer."""
    random_model(setup).save_pretrained(path)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(path)
    return ModelSource(
        path=path, name="benchmark", fingerprint="weights", tokenizer_fingerprint="tokenizer", has_weights=True
    )


def write_pairs(path: Path, rows: list[dict[str, list[int]]], train: TrainSettings) -> RenderedSet:
    """Write the pairs as a rendered set, permuted so that the first epoch visits them in the order of ``rows``."""
    path.mkdir()
    pairs = [to_pair(row) for row in rows]
    ordered = list(pairs)
    for pair, index in zip(pairs, permutation(train.seed, 0, len(pairs)).tolist(), strict=True):
        ordered[index] = pair
    write_split(path / "train.arrow", ordered)
    write_split(path / "test.arrow", pairs[:HELD_OUT])
    return RenderedSet.model_construct(
        path=path,
        fingerprint="pairs",
        renderer_name="role_colon",
        tokenizer_path=path.parent / "model",
        train_pairs=len(pairs),
        test_pairs=len(pairs[:HELD_OUT]),
        tokens=sum(pair.tokens for pair in pairs),
        truncated=0,
        train_report=DataReport(rows_read=len(pairs), kept=len(pairs)),
        test_report=DataReport(rows_read=HELD_OUT, kept=HELD_OUT),
    )


def to_pair(row: dict[str, list[int]]) -> TokenPair:
    """A row of token ids as a token pair; every token of its completions is trained."""

    def side(name: str) -> CompletionTokens:
        ids = np.array(row[f"{name}_ids"], dtype=np.int32)
        return CompletionTokens(ids, np.ones(len(ids), dtype=np.bool_))

    return TokenPair(np.array(row["prompt_ids"], dtype=np.int32), Pair(side("chosen"), side("rejected")))


def score(directory: Path, source: ModelSource, rendered: RenderedSet, setup: Setup) -> ReferenceSet:
    """Run the reference stage in this process; returns its output."""
    cached = setup.train.reference_mode != "on_the_fly"
    request = ScoreRequest(
        rendered=rendered, model=source, train=setup.train, score_train=cached, frozen_dtype=setup.frozen_dtype
    )
    store = Store(directory / "store")
    with store.write("score_reference", "benchmark") as draft:
        reference.run(request, draft)
    references = store.find("score_reference", "benchmark", ReferenceSet)
    assert references is not None
    return references
