"""What a stored reference depends on, and what it does not; and that storing it changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_core import river
from dpo_core.model.source import describe
from dpo_core.produce import Work
from dpo_core.recipe import Recipe
from dpo_core.records import DataReport, ModelSource, PairSet, RenderedSet
from dpo_core.train.loop import Run, steps
from dpo_core.train.packing import branches, build
from dpo_core.train.reference import OnTheFly
from tests import tiny

REPORT = DataReport(rows_read=64, kept=64)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """The work that the river asks for, instead of doing it."""
    asked: list[Work] = []
    monkeypatch.setattr(river, "produce", lambda _, work, kind, meanwhile=None: asked.append(work))
    return asked


def rendered(path: Path) -> RenderedSet:
    return RenderedSet(
        path=path,
        fingerprint="r",
        renderer_name="role_colon",
        tokenizer_path=path,
        train_pairs=64,
        test_pairs=4,
        tokens=1000,
        truncated=0,
        train_report=REPORT,
        test_report=REPORT,
    )


def recipe(train: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(sections | {"train": {"batch_size": 8} | (train or {})})


def keys(asked: list[Work], model: ModelSource, *recipes: Recipe) -> list[str]:
    for one in recipes:
        river.score_reference(one, rendered(model.path), model)
    return [work.key for work in asked[-len(recipes) :]]


def test_settings_of_the_optimisation_share_a_stored_reference(asked: list[Work], tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")
    changed = ({"learning_rate": 1e-3}, {"dpo_beta": 0.5}, {"token_budget": 512}, {"loss": "ipo"}, {"warmup_steps": 3})
    assert len(set(keys(asked, model, recipe(), *(recipe(train=change) for change in changed)))) == 1


def test_numerics_seen_pairs_and_weights_do_not(asked: list[Work], tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")
    lora, full = {"lora_rank": 8}, {"lora_rank": 0}
    half = {"precision": "bf16"}
    told = keys(
        asked,
        model,
        recipe(train={"precision": "fp32"}),
        recipe(train=half, model=full),
        recipe(train=half, model=lora),
        recipe(train={"layout": "padded"}),
        recipe(train={"max_steps": 1, "batch_size": 4}),
    )
    tiny.llama(seed=1).save_pretrained(model.path)
    told += keys(asked, describe(model.path, "tiny"), recipe())
    assert len(set(told)) == len(told)


def test_another_max_length_or_treatment_of_what_is_beyond_it_renders_anew(asked: list[Work], tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")
    pairs = PairSet(
        path=tmp_path,
        fingerprint="p",
        dataset="demo",
        source="demo",
        train_pairs=64,
        test_pairs=4,
        train_report=REPORT,
        test_report=REPORT,
    )
    for changed in ({}, {"max_length": 1024}, {"max_length": 1024, "over_length": "drop"}):
        river.render(recipe(render=changed | {"renderer_name": "role_colon"}), pairs, model)
    assert len({work.key for work in asked}) == 3


def test_the_stored_reference_is_the_one_on_the_fly(tmp_path: Path) -> None:
    model, pairs = tiny.llama(), tiny.token_pairs(9)
    stored = tiny.references(tmp_path, model, tiny.rows(tmp_path, pairs))
    order = [7, 2, 5]
    batch = build("tree", [branches(pairs[index]) for index in order], torch.device("cpu"))
    torch.testing.assert_close(OnTheFly(model, "fp32").of(order, batch), stored.of(order, batch), atol=1e-5, rtol=0)


def test_a_reference_found_and_one_scored_now_give_the_same_run_to_the_bit(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(16))
    tiny.references(tmp_path, tiny.llama(), split)

    def losses(known: Any) -> list[dict[str, float]]:
        policy = tiny.llama()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
        run = Run(policy, optimizer, split, known, recipe(train={"batch_size": 4}).train)
        return [{k: v for k, v in step.values.items() if "/" not in k and k != "batch_time"} for step in steps(run)]

    found = losses(tiny.open_references(tmp_path, "train"))
    (tmp_path / "train.safetensors").unlink()
    assert losses(tiny.references(tmp_path, tiny.llama(), split)) == found
