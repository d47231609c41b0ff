"""Stages that may take long say how far they are, by a clock that goes on six seconds whenever it is looked at."""

import gzip
import itertools
import json
import re
from pathlib import Path

import pytest

from dpo_core.cache.store import Store
from dpo_core.config.recipe import DataSettings, RenderSettings, TrainSettings, WarmStartSettings
from dpo_core.data import acquire
from dpo_core.inference.generator import Sampling, open_generator
from dpo_core.model.locate import describe
from dpo_core.records import PairSet, RenderedSet
from dpo_core.render import render
from dpo_core.stages.acquire import AcquireRequest
from dpo_core.stages.render import RenderRequest
from dpo_core.system import progress
from dpo_core.train import warm_start
from dpo_core.train.batching.budget_attempt import BudgetAttempt
from dpo_core.train.validation import ValidationConfig, pair_table
from tests import tiny
from tests.conftest import pair_rows


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines, their durations left out."""
    said: list[str] = []
    seconds = itertools.count(0, 6)
    monkeypatch.setattr(progress, "now", lambda: float(next(seconds)))
    monkeypatch.setattr(progress, "say", lambda line: said.append(re.sub(r"\d+ [smh]\b( \d+ [sm]\b)?", "T", line)))
    return said


def acquired(path: Path, store: Store) -> PairSet:
    data = DataSettings(dataset=str(path))
    with store.write("acquire", "key") as draft:
        acquire.run(AcquireRequest(data=data, source=acquire.pin_source(data), seed=0), draft)
    found = store.find("acquire", "key", PairSet)
    assert found is not None
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_acquiring_and_rendering(tmp_path: Path, said: list[str], stories: Path, packed: bool) -> None:
    path, store = tmp_path / f"pairs.jsonl{'.gz' if packed else ''}", Store(tmp_path / "store")
    text = "".join(json.dumps(row) + "\n" for row in pair_rows(600)).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    pairs = acquired(path, store)
    size = f"{path.stat().st_size // 1000:,}"
    expected = rf"{size} kB in T" if packed else rf"\d+ of {size} kB, T left"  # a small packed file is read at once
    assert re.fullmatch(rf"reading {path.name}: {expected}", said[0])
    assert "splitting: 1 of 1,200 pairs, T left" in said
    said.clear()
    request = RenderRequest(
        pairs=pairs, model=describe(stories, "stories"), render=RenderSettings(renderer_name="role_colon")
    )
    with store.write("render", "key") as draft:
        render.run(request, draft)
    assert store.find("render", "key", RenderedSet) is not None
    assert "rendering: 1 of 600 pairs, T left" in said
    assert said[-1] == "rendering: 600 pairs in T"


def test_a_warm_start(tmp_path: Path, said: list[str]) -> None:
    settings = WarmStartSettings(sft_steps=5, sft_batch_size=2)
    phase = warm_start.SupervisedPhase(tiny.llama(), tiny.rows(tmp_path, tiny.token_pairs(8)), settings, seed=0)
    warm_start.report_phase(phase, BudgetAttempt(None, 2048))
    assert re.fullmatch(r"warm start: 1 of 5 steps, \d\.\d{3} nats a token, T left", said[0])
    assert said[-1] == "warm start: 5 steps in T"


def test_an_evaluation_on_held_out_pairs(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = tiny.llama(), tiny.rows(tmp_path, tiny.token_pairs(6))
    references = tiny.references(tmp_path, model, split)
    said.clear()
    pair_table(model, split, references, ValidationConfig(TrainSettings(precision="fp32"), "tree"))
    assert said == ["evaluating: 6 held-out pairs in T"]  # one microbatch holds them all


def test_answers(stories: Path, said: list[str]) -> None:
    conversations = [[{"role": "user", "content": f"Tell me about {name}."}] for name in ("Tom", "Lily", "a dog")]
    open_generator(stories).responses(conversations, Sampling(6))
    # From the first step on, long before an answer is done.
    lines = [line for line in said if line.startswith("generating")]
    assert lines[0] == "generating: 0 of 3 responses, T left"
    assert lines[-1] == "generating: 3 responses in T"
