"""Samples are drawn from whole prompts, also where training sees a cut one; what leaves too little room is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_core.config.recipe import EvaluateSettings, TrainSettings
from dpo_core.data.lengths import LengthCounts, summarize_lengths
from dpo_core.evaluate.generate import continue_prompts
from dpo_core.records import DataReport
from dpo_core.render.registry import get_renderer
from dpo_core.render.token_dataset import open_split, write_split
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.train.checkpoint import journal
from dpo_core.train.runtime.run_summary import dropped_line, length_warnings
from dpo_core.train.train import sample_policy
from tests import tiny

WHOLE = [list(range(3, 40)), list(range(3, 53))]
KEPT = DataReport(rows_read=9, kept=9)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """A run whose second test prompt is cut, as much of it as sampling reads."""
    first, second = tiny.token_pairs(2)
    cut = replace(second, prompt=np.array(WHOLE[1][-9:], np.int32), whole_prompt=np.array(WHOLE[1], np.int32))
    write_split(tmp_path / "test.arrow", [replace(first, prompt=np.array(WHOLE[0], np.int32)), cut])
    renderer = get_renderer("role_colon", load_tokenizer(tiny.directory(tmp_path / "model")))
    rendered = SimpleNamespace(path=tmp_path, train_report=KEPT, test_report=KEPT, truncated=0)
    request = SimpleNamespace(
        samples=8, max_new_tokens=4, train=TrainSettings(infrequent_eval_every=5), rendered=rendered
    )
    run = SimpleNamespace(policy=tiny.llama())
    return SimpleNamespace(
        request=request, run=run, renderer=renderer, test_split=(open_split(tmp_path, "test"), None), log_path=tmp_path
    )


def test_the_policy_continues_whole_prompts(session: Any) -> None:
    sample_policy(session, 3)
    rows = journal.read(session.log_path / "samples.jsonl")
    assert [row["prompt"] for row in rows] == [session.renderer.tokenizer.decode(ids) for ids in WHOLE]
    assert all(row["reply"] for row in rows)


def test_an_evaluation_continues_whole_prompts(session: Any) -> None:
    asked: list[list[int]] = []

    def responses_to_ids(prompts: list[list[int]], sampling: Any) -> list[Any]:
        asked.extend(prompts)
        return [SimpleNamespace(text="", stop_reason="stop", tokens=1) for _ in prompts]

    generator: Any = SimpleNamespace(responses_to_ids=responses_to_ids, renderer=session.renderer)
    continue_prompts(lambda: generator, session.request.rendered, EvaluateSettings(num_samples=8))
    assert asked == WHOLE


def test_prompts_without_room_in_the_context_are_told(session: Any) -> None:
    assert length_warnings(session) == []
    session.request.max_new_tokens = 256 - 49
    (line,) = length_warnings(session)
    assert line.startswith("Of the 2 held-out prompts that are sampled, 1 leave less room than max_new_tokens=207 in")
    assert "256 tokens" in line
    session.request.train = TrainSettings(infrequent_eval_every=0)
    assert length_warnings(session) == []


def test_pairs_over_max_length_are_told_where_training_starts(session: Any) -> None:
    counts = LengthCounts("tokens")
    counts.counts["prompt"].update(range(1, 101))
    report = DataReport(
        rows_read=100,
        kept=90,
        dropped={"over max_length": 2, "tie": 8},
        truncated=3,
        uncut=summarize_lengths(counts.counts["prompt"]),
    )
    session.request.rendered.train_report, session.request.rendered.truncated = report, 3
    assert length_warnings(session) == [
        "Warning: 5 of 92 train pairs are longer than max_length (3 cut, 2 dropped); max_length=95 would keep 95 % of"
        " them whole."
    ]
    assert dropped_line(session.request) == "2 over max_length, 8 tie, 3 kept but truncated"
    session.request.rendered.train_report = report.model_copy(update={"truncated": 2})
    assert length_warnings(session) == []
