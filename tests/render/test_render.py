"""The stage as it runs: what is written, what is counted, what is refused, and how soon it is found again."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_core.cache.store import Store, store_of
from dpo_core.config.recipe import Recipe, RenderSettings
from dpo_core.data.preference import Message, Preference, read_pairs, write_pairs
from dpo_core.errors import DataError, RecipeError
from dpo_core.pair import Pair
from dpo_core.pipeline import stage_calls
from dpo_core.process.run_stage import run_stage
from dpo_core.records import DataReport, ModelSource, PairSet, RenderedSet
from dpo_core.render import render
from dpo_core.render.registry import get_renderer
from dpo_core.render.token_dataset import open_split
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.stages.render import RenderRequest
from dpo_core.stages.stage import StageResult
from tests.render.tokenizers import byte_tokenizer


def message(role: str, content: str, **flags: Any) -> Message:
    return Message(role=role, content=content, **flags)


def preference(index: int, answer: str = "Yes", **flags: bool) -> Preference:
    prompt = [message("user", f"Question {index}?")]
    sides = Pair([message("assistant", f"{answer} {index}.", **flags)], [message("assistant", "No.", **flags)])
    return Preference(prompt, sides)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """A directory with a tokenizer."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    return ModelSource(
        path=tmp_path / "model", name="someone/model", fingerprint="m", tokenizer_fingerprint="t", has_weights=False
    )


def pair_set(path: Path, pairs: list[Preference]) -> PairSet:
    """The pairs as both splits of an acquired dataset."""
    path.mkdir(exist_ok=True)
    for split in ("train", "test"):
        write_pairs(path / f"{split}.arrow", pairs)
    report = DataReport(rows_read=len(pairs), kept=len(pairs))
    counts = {"train_pairs": len(pairs), "test_pairs": len(pairs), "train_report": report, "test_report": report}
    return PairSet(path=path, fingerprint="p", dataset="made", source="here", **counts)


def rendered(tmp_path: Path, model: ModelSource, pairs: list[Preference], **settings: Any) -> RenderedSet:
    """The stage's record."""
    settings = {"renderer_name": "qwen3_instruct"} | settings
    request = RenderRequest(pairs=pair_set(tmp_path / "pairs", pairs), model=model, render=RenderSettings(**settings))
    store = Store(tmp_path / "store")
    key = json.dumps(settings)
    with store.write("render", key) as draft:
        render.run(request, draft)
    found = store.find("render", key, RenderedSet)
    assert found is not None
    return found


def test_the_stage_writes_what_the_pair_tokenizer_returns(tmp_path: Path, model: ModelSource) -> None:
    questions = [message("user", f"{'Really, ' * (index % 5)}{index}?") for index in range(2100)]
    pairs = [Preference([question], preference(index).sides) for index, question in enumerate(questions)]
    record = rendered(tmp_path, model, pairs, max_length=60)
    rows = open_split(record.path, "train")
    renderer = get_renderer("qwen3_instruct", load_tokenizer(model.path))
    fitted = PairTokenizer(renderer, 60).tokenize_all(list(read_pairs(tmp_path / "pairs" / "train.arrow")))
    alone = [result for result in fitted if isinstance(result, TokenizedPair)]
    assert len(rows) == record.train_pairs == len(pairs)
    assert record.truncated == sum(result.truncated for result in alone) > 0
    for row, result in zip(rows, alone, strict=True):
        assert row.prompt.tolist() == result.pair.prompt.tolist()
        assert row.sides.chosen.ids.tolist() == result.pair.sides.chosen.ids.tolist()
        assert row.sides.rejected.mask.tolist() == result.pair.sides.rejected.mask.tolist()


def test_what_cannot_be_rendered_is_dropped_and_counted(tmp_path: Path, model: ModelSource) -> None:
    odd = Preference([message("user", "a"), message("user", "b")], preference(0).sides)
    record = rendered(tmp_path, model, [preference(0), odd], renderer_name="gemma")
    assert (record.train_pairs, record.train_report.dropped) == (1, {"not renderable": 1})


def test_when_nothing_can_be_rendered_the_first_error_is_raised(tmp_path: Path, model: ModelSource) -> None:
    odd = Preference([message("user", "a"), message("user", "b")], preference(0).sides)
    with pytest.raises(DataError, match=r"None of 1 train pairs is left \(1 not renderable\). Message 2 of a conv"):
        rendered(tmp_path, model, [odd], renderer_name="mistral")


def test_a_max_length_below_the_headers_is_an_error_that_says_so(tmp_path: Path, model: ModelSource) -> None:
    headers = 1 + len("user\n") + 1 + len("\n") + 1 + len("assistant\n")  # each marker is a token
    with pytest.raises(
        RecipeError, match=rf"max_length={headers + 1}, and the headers of qwen3_instruct .* take {headers} tokens"
    ):
        rendered(tmp_path, model, [preference(0)], max_length=headers + 1)
    assert not any((tmp_path / "store" / "render").iterdir())
    # With room for a letter and a response's token there is no pair left, which is the data's error.
    with pytest.raises(DataError, match=rf"None of 1 train pairs is left \(1 no room.*max_length={headers + 2}"):
        rendered(tmp_path, model, [preference(0)], max_length=headers + 2)


def test_sides_that_are_equal_within_max_length_are_dropped(tmp_path: Path, model: ModelSource) -> None:
    start = "the same start " * 10
    same = Pair([message("assistant", f"{start} A")], [message("assistant", f"{start} B")])
    pairs = [Preference([message("user", "Question?")], same)] * 3
    with pytest.raises(
        DataError, match=r"None of 3 train pairs is left \(3 equal sides.*max_length=90.*Raise max_length"
    ):
        rendered(tmp_path, model, pairs, max_length=90)


def test_a_trained_message_behind_the_cut_is_no_trained_token_within(tmp_path: Path, model: ModelSource) -> None:
    side = [message("assistant", "one " * 20), message("user", "two"), message("assistant", "three")]
    pairs = [preference(0), Preference(preference(1).prompt, Pair(side, [message("assistant", "no")]))]
    record = rendered(tmp_path, model, pairs, max_length=78)
    assert record.train_report.dropped == {"no trained token within max_length": 1}
    assert rendered(tmp_path, model, pairs, max_length=78, train_on_what="all_messages").train_report.dropped == {}


def lengthy(count: int) -> list[Preference]:
    """Pairs of 20 words more each, beside twenty short ones."""
    long = [Preference([message("user", "why " * 20 * n)], preference(n).sides) for n in range(1, count + 1)]
    return [preference(index) for index in range(20)] + long


def test_what_is_cut_is_counted_by_what_was_lost(tmp_path: Path, model: ModelSource) -> None:
    older = [message("user", "old " * 20), message("assistant", "yes"), *preference(0).prompt]
    long = [message("assistant", "because " * 30)]
    pairs = [
        *lengthy(2),
        Preference(older, preference(0).sides),
        Preference(preference(0).prompt, Pair(preference(0).sides.chosen, long)),
        Preference([message("system", "s" * 200), *preference(0).prompt], preference(0).sides),
    ]
    record = rendered(tmp_path, model, pairs, max_length=100)
    assert record.train_report.cuts == {
        "older turns of the prompt": 1,
        "text of the prompt's last turn": 2,
        "end of the rejected response": 1,
    }
    assert (record.truncated, record.train_report.truncated) == (4, 4)
    assert record.train_report.dropped == {"no room for the prompt": 1}
    told = (record.path / "report.txt").read_text()
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "truncated: older turns of the prompt 1 1" in lines
    assert "dropped: no room for the prompt 1 1" in lines
    assert record.train_report.uncut is not None
    longest = record.train_report.uncut.quantiles["95"]
    warning = "Warning: 5 of 25 train pairs are longer than max_length (4 cut, 1 dropped);"
    assert f"{warning} max_length={longest} would keep 95 % of them whole." in lines
    again = rendered(tmp_path, model, pairs, max_length=longest)
    assert again.train_report.truncated + sum(again.train_report.dropped.values()) <= 0.05 * len(pairs)
    assert "Warning" not in (again.path / "report.txt").read_text()


def test_over_length_pairs_are_dropped_and_counted(tmp_path: Path, model: ModelSource) -> None:
    record = rendered(tmp_path, model, lengthy(3), max_length=100, over_length="drop")
    assert record.train_report.dropped == {"over max_length": 3}
    assert (record.train_pairs, record.truncated) == (20, 0)
    assert "Warning: 3 of 23 train pairs are longer than max_length (0 cut, 3 dropped)" in (
        record.path / "report.txt"
    ).read_text().replace("\n", " ")


def test_test_prompts_are_kept_whole_beside_what_is_trained(tmp_path: Path, model: ModelSource) -> None:
    pairs = lengthy(2)
    record = rendered(tmp_path, model, pairs, max_length=100)
    renderer = get_renderer("qwen3_instruct", load_tokenizer(model.path))
    test, train = open_split(record.path, "test"), open_split(record.path, "train")
    assert test.whole_prompts(100) == [renderer.build_generation_prompt(pair.prompt) for pair in pairs]
    assert len(test[21].prompt) < len(test.whole_prompts(22)[21])
    assert train.whole_prompts(22)[21] == train[21].prompt.tolist()  # nobody generates from these


def test_customized_trains_the_flagged_messages_of_a_completion(tmp_path: Path, model: ModelSource) -> None:
    pairs = [preference(0, trainable=True), preference(1, trainable=False)]
    record = rendered(tmp_path, model, pairs, train_on_what="customized")
    assert (record.train_pairs, record.train_report.dropped) == (1, {"no trained token": 1})


def test_training_what_no_completion_has_is_refused(tmp_path: Path, model: ModelSource) -> None:
    with pytest.raises(
        DataError, match=r"2 no trained token.*train_on_what=all_user_and_system_messages.*or set train"
    ):
        rendered(tmp_path, model, [preference(0), preference(1)], train_on_what="all_user_and_system_messages")


def rendered_by(recipe: Recipe, pairs: PairSet, model: ModelSource) -> StageResult[RenderedSet]:
    return run_stage(store_of(recipe), stage_calls.render_call(recipe, pairs, model))


def test_the_second_use_is_found_within_a_second(tmp_path: Path, model: ModelSource) -> None:
    pairs = pair_set(tmp_path / "pairs", [preference(index) for index in range(5000)])
    settings = {"render": {"renderer_name": "llama3"}, "track": {"runs_dir": tmp_path / "runs"}}
    recipe = Recipe.model_validate(settings)
    first = rendered_by(recipe, pairs, model)
    started = time.perf_counter()
    second = rendered_by(recipe, pairs, model)
    assert (first.cached, second.cached) == (False, True)
    assert time.perf_counter() - started < 1
    assert second.record == first.record


def test_a_cut_off_cache_directory_is_rebuilt(tmp_path: Path, model: ModelSource) -> None:
    pairs = pair_set(tmp_path / "pairs", [preference(0)])
    recipe = Recipe.model_validate({"render": {"renderer_name": "llama3"}, "track": {"runs_dir": tmp_path / "runs"}})
    first = rendered_by(recipe, pairs, model).record
    os.truncate(first.path / "train.arrow", 10)
    again = rendered_by(recipe, pairs, model)
    assert not again.cached
    assert len(open_split(again.record.path, "train")) == 1


def test_a_users_own_renderer_runs_in_the_stages_process(
    tmp_path: Path, model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_format.py").write_text(
        "from dpo_core.render.renderer import Renderer\n"
        "from dpo_core.render.message_pieces import Turn\n"
        "class Plain(Renderer):\n"
        "    name = 'plain'\n"
        "    def turn(self, messages, index):\n"
        "        return Turn((messages[index]['role'] + '>',), (messages[index]['content'] + '\\n',))\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = {"render": {"renderer_name": "own_format:Plain"}, "track": {"runs_dir": tmp_path / "runs"}}
    record = rendered_by(Recipe.model_validate(settings), pair_set(tmp_path / "pairs", [preference(7)]), model).record
    tokenizer = load_tokenizer(model.path)
    assert tokenizer.decode(open_split(record.path, "train")[0].prompt.tolist()) == "user>Question 7?\nassistant>"
    assert record.renderer_name == "own_format:Plain"
