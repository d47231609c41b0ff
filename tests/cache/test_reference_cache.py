"""Cache of reference log-probabilities: a scored reference is extended by the pairs that another run adds."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_core.cache import fingerprint
from dpo_core.cache.store import MANIFEST, Store, store_of
from dpo_core.config.recipe import Recipe
from dpo_core.model.locate import describe
from dpo_core.pipeline import stage_calls
from dpo_core.process import run_stage
from dpo_core.records import DataReport, ReferenceSet, RenderedSet
from dpo_core.render.token_dataset import write_split
from dpo_core.stages.stage import StageCall
from dpo_core.system import progress
from dpo_core.train import data_order, reference
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import open_references, open_split
from tests import tiny

TRAIN_PAIRS, TEST_PAIRS = 22, 5


class World:
    """Rendered pairs, a reference, and a count of the pairs that are scored for it."""

    def __init__(self, path: Path) -> None:
        self.path, self.scored = path, 0
        self.model = describe(tiny.directory(path / "model"), "tiny")
        write_split(path / "train.arrow", tiny.token_pairs(TRAIN_PAIRS))
        write_split(path / "test.arrow", tiny.token_pairs(TEST_PAIRS, seed=1))
        report = DataReport(rows_read=TRAIN_PAIRS, kept=TRAIN_PAIRS)
        self.rendered = RenderedSet(
            path=path,
            fingerprint="rendered",
            renderer_name="role_colon",
            tokenizer_path=self.model.path,
            train_pairs=TRAIN_PAIRS,
            test_pairs=TEST_PAIRS,
            tokens=1000,
            truncated=0,
            train_report=report,
            test_report=report,
        )

    def recipe(self, **train: Any) -> Recipe:
        settings = {"batch_size": 4, "num_epochs": 3} | train
        return Recipe.model_validate({"train": settings, "track": {"runs_dir": self.path / "runs"}})

    def reference(self, **train: Any) -> tuple[ReferenceSet, int]:
        """The stage's record, and how many pairs were scored for it."""
        self.scored = 0
        recipe = self.recipe(**train)
        call = stage_calls.score_reference_call(recipe, self.rendered, self.model)
        result = run_stage.run_stage(store_of(recipe), call)
        return result.record, self.scored


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The stage runs in this process."""
    (tmp_path / "model").mkdir()
    world, build = World(tmp_path), reference.build

    def counted(layout: Any, items: Any, device: torch.device) -> Any:
        world.scored += len(items)
        return build(layout, items, device)

    def run_in_process(call: StageCall[ReferenceSet], store: Store) -> None:
        with store.write(call.stage.name, call.cache_key) as draft:
            reference.run(call.request, draft)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "build", counted)
    monkeypatch.setattr(run_stage, "launch", run_in_process)
    return world


def values(record: ReferenceSet, split: str) -> dict[int, torch.Tensor]:
    references = open_references(record.path, split)
    return {index: torch.from_numpy(references.logps_of_pair(index)) for index in references._position}


def test_the_pairs_of_the_runs_steps_are_scored_and_the_test_split(world: World) -> None:
    record, scored = world.reference(max_steps=2)
    assert scored == 8 + TEST_PAIRS
    assert (record.train_pairs, record.test_pairs, record.copied_pairs) == (8, TEST_PAIRS, 0)
    assert list(values(record, "train")) == data_order.visited_pairs(TRAIN_PAIRS, world.recipe(max_steps=2).train)
    assert list(values(record, "test")) == list(range(TEST_PAIRS))


def test_a_longer_run_scores_what_is_missing(world: World) -> None:
    shorter, _ = world.reference(max_steps=2)
    longer, scored = world.reference(max_steps=4)
    assert scored == 8
    assert (longer.train_pairs, longer.copied_pairs) == (16, 8 + TEST_PAIRS)
    longest, scored = world.reference()  # three epochs without the last, partial batch see nearly all
    assert scored == longest.train_pairs - 16 > 0
    for name in ("train", "test"):
        before, after = values(shorter, name), values(longest, name)
        assert all(torch.equal(after[index], before[index]) for index in before)  # copied to the bit


def test_an_extended_reference_is_one_scored_at_once_within_rounding(world: World, tmp_path: Path) -> None:
    world.reference(max_steps=2)
    extended, _ = world.reference(max_steps=5)
    model = tiny.llama()
    indices = data_order.visited_pairs(TRAIN_PAIRS, world.recipe(max_steps=5).train)
    [at_once] = reference.iterate_scores(model, open_split(tmp_path, "train"), indices, "tree", "fp32")
    found = values(extended, "train")
    assert list(found) == indices
    for index in indices:
        torch.testing.assert_close(found[index], torch.from_numpy(at_once[index]), atol=1e-5, rtol=0)


def test_the_loss_at_step_0_is_ln_2_with_an_extended_reference(world: World, tmp_path: Path) -> None:
    world.reference(max_steps=2)
    extended, _ = world.reference(max_steps=5)
    policy = tiny.llama()
    frozen = torch.optim.SGD(policy.parameters(), lr=0.0)
    train = world.recipe(max_steps=5, lr_schedule="constant", learning_rate=1e-30).train
    run = Run(policy, frozen, open_split(tmp_path, "train"), open_references(extended.path, "train"), train)
    assert [step.values["dpo_loss"] for step in steps(run)] == pytest.approx([math.log(2)] * 5, abs=1e-6)


def test_a_run_that_needs_no_other_pair_does_not_open_the_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    longer, _ = world.reference(max_steps=5)
    monkeypatch.setattr(reference, "load_model", None)
    record, scored = world.reference(max_steps=3)
    assert (scored, record.train_pairs, record.copied_pairs) == (0, 12, 12 + TEST_PAIRS)
    assert record.layouts == longer.layouts != {}
    assert record.fingerprint != longer.fingerprint


def test_an_extended_reference_is_the_one_that_is_scored_at_once(world: World) -> None:
    world.reference(max_steps=3)
    extended, _ = world.reference(max_steps=5)
    shutil.rmtree(world.path / "runs")
    assert world.reference(max_steps=5)[0].fingerprint == extended.fingerprint


def test_a_reference_on_the_fly_lends_its_test_split_and_borrows_it(world: World) -> None:
    assert world.reference(reference_mode="on_the_fly")[1] == TEST_PAIRS
    assert world.reference(max_steps=1)[1] == 4


def test_other_numerics_and_other_weights_take_nothing_over(world: World, tmp_path: Path) -> None:
    world.reference(max_steps=2)
    assert world.reference(max_steps=2, precision="bf16")[1] == 8 + TEST_PAIRS
    assert world.reference(max_steps=2, layout="padded")[1] == 8 + TEST_PAIRS
    tiny.llama(seed=1).save_pretrained(tmp_path / "model")
    world.model = describe(tmp_path / "model", "tiny")
    assert world.reference(max_steps=2)[1] == 8 + TEST_PAIRS


def test_a_cached_reference_is_not_scored_again_whatever_the_token_budget(world: World) -> None:
    world.reference(max_steps=2)
    assert world.reference(max_steps=2, token_budget=64)[1] == 0
    assert world.reference(max_steps=2, token_budget="auto")[1] == 0


@pytest.mark.parametrize("damage", ["flipped", "record", "manifest"])
def test_nothing_is_taken_over_from_a_damaged_output(world: World, damage: str) -> None:
    record, _ = world.reference(max_steps=2)
    name = {"flipped": "train.safetensors", "record": "record.json", "manifest": MANIFEST}[damage]
    data = bytearray((record.path / name).read_bytes())
    data[-8] ^= 1
    (record.path / name).write_bytes(data)
    longer, scored = world.reference(max_steps=4)
    assert (scored, longer.copied_pairs) == (16 + TEST_PAIRS, 0)


def test_an_output_of_an_earlier_release_is_found_and_lends_nothing(world: World) -> None:
    """Its record has no base_key: it answers for its own key, as before."""
    scored, _ = world.reference(max_steps=2)
    record, manifest = scored.path / "record.json", scored.path / MANIFEST
    old = {name: value for name, value in json.loads(record.read_text()).items() if name not in NEW}
    record.write_text(json.dumps(old))
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({"files": files | {"record.json": fingerprint.of_file(record)}}))
    assert world.reference(max_steps=2)[1] == 0
    assert world.reference(max_steps=4)[1] == 16 + TEST_PAIRS


NEW = ("copied_pairs", "base_key")


def test_a_long_scoring_tells_its_progress_and_what_was_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    seconds = iter(range(0, 100_000, 6))
    monkeypatch.setattr(progress, "now", lambda: float(next(seconds)))
    monkeypatch.setattr(progress, "say", lines.append)
    monkeypatch.setattr(reference, "say", lines.append)
    world.reference(max_steps=2)
    assert lines[0] == "scoring the reference: 8 of 13 pairs, 4 s left"
    assert lines[-1].startswith("scoring the reference: 13 pairs in ")
    lines.clear()
    world.reference(max_steps=4)
    assert lines[0] == "scoring the reference: 13 pairs come from earlier runs, 8 are left"
