"""Under which key answers are kept: that of what they depend on, and of nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_core.cache.store import Store, store_of
from dpo_core.config.recipe import EvaluateSettings, Recipe, TrackSettings
from dpo_core.inference import select_engine
from dpo_core.model.locate import describe
from dpo_core.pipeline import evaluation_plan
from dpo_core.pipeline.evaluation_plan import EvaluationPlan
from dpo_core.process.run_stage import run_stage
from dpo_core.records import Imports, ModelSource, PromptSet, TaskContents
from dpo_core.stages.evaluation.answer import sampling_in_key
from dpo_core.stages.stage import StageCall
from dpo_core.system import nltk_data

TASK = "inspect_evals/gsm8k"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the task's package were there."""
    monkeypatch.setattr("dpo_core.evaluate.task_names.check_package", lambda package, name: None)


@pytest.fixture
def model(stories: Path) -> ModelSource:
    return describe(stories, "stories")


def keys(model: ModelSource, **sections: dict[str, Any]) -> dict[str, str]:
    """By task; IFEval's prompts and the task's samples are always the same."""
    recipe = Recipe.model_validate(sections)
    prompts = PromptSet(path=Path("prompts.jsonl"), fingerprint="541", source="file", prompts=541)
    asked = EvaluationPlan(prompts, {TASK: "1319 samples"})
    works = evaluation_plan.answer_calls(recipe, model, "role_colon", asked)
    return {work.request.task: work.cache_key for work in works}  # type: ignore[attr-defined]


BOTH = {"tasks": ("ifeval", TASK)}


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"dpo_beta": 0.7, "loss": "ipo"}},
        {"evaluate": {"eval_batch_size": 7, "num_samples": 3, "infrequent_prompts": 5, "eval_seed": 4}},
        {"evaluate": {"ifeval_limit": 600, "ifeval_path": "copy.jsonl", "nltk_data": "nltk"}},
    ],
)
def test_what_changes_no_answer_changes_no_key(model: ModelSource, sections: dict[str, dict[str, Any]]) -> None:
    told = {**sections, "evaluate": BOTH | sections.get("evaluate", {})}
    assert keys(model, **told) == keys(model, evaluate=BOTH)


def test_another_task_or_its_limit_changes_no_other_key(model: ModelSource) -> None:
    both, limited = keys(model, evaluate=BOTH), keys(model, evaluate=BOTH | {"task_limit": 9})
    assert keys(model)["ifeval"] == both["ifeval"] == limited["ifeval"]
    assert both[TASK] != limited[TASK]


@pytest.mark.parametrize("settings", [{"max_new_tokens": 9}, {"eval_temperature": 0.5}, {"eval_engine": "paged"}])
def test_what_changes_answers_changes_the_key(model: ModelSource, settings: dict[str, Any]) -> None:
    assert keys(model, evaluate=settings) != keys(model)


def test_draws_have_the_seed_in_their_key(model: ModelSource) -> None:
    drawn = {"eval_temperature": 1.0}
    assert keys(model, evaluate=drawn | {"eval_seed": 1}) != keys(model, evaluate=drawn)


def test_another_interpreter_has_the_key_of_the_engine_that_it_is_for(model: ModelSource) -> None:
    """Without it the keys are those that were kept before there was such a setting."""
    there = {"eval_python": "/elsewhere/bin/python"}
    assert keys(model, evaluate=there) == keys(model, evaluate={"eval_engine": "vllm"}) != keys(model)
    assert keys(model, evaluate=there | {"eval_engine": "torch"}) == keys(model, evaluate={"eval_engine": "torch"})
    assert sampling_in_key(EvaluateSettings(), select_engine.configured_engine(EvaluateSettings())) == [
        1280,
        0.0,
        None,
        "auto",
    ]


def test_answers_are_given_by_the_interpreter_of_the_settings(
    model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home-of-tests")
    for setting, expected in ((None, None), ("~/venv/bin/python", Path("/home-of-tests/venv/bin/python"))):
        recipe = Recipe.model_validate({"evaluate": {"eval_python": setting}})
        assert (
            evaluation_plan.answer_call(recipe, model, "role_colon", "ifeval", EvaluationPlan(None, {})).python
            == expected
        )


def test_a_judge_is_asked_from_here_and_tasks_are_built_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def launch(call: StageCall[Any], store: Store) -> None:
        stage, request = call.stage.name, call.request
        asked.append((stage, getattr(request, "tasks", None), getattr(request, "judge", None), call.python))
        record: Any = TaskContents if stage == "look" else Imports
        with store.write(stage, call.cache_key) as draft:
            draft.publish(record(path=draft.final, **({"digests": {}} if stage == "look" else {"python": "3.12"})))

    monkeypatch.setattr("dpo_core.process.run_stage.launch", launch)
    there = Path("/elsewhere/bin/python")
    recipe = Recipe.model_validate({"evaluate": BOTH | {"eval_python": there}, "track": {"runs_dir": tmp_path}})
    evaluation_plan.plan(recipe.evaluate, None, store_of(recipe), {"python": [3, 12], "versions": {}}, "openai/gpt-4o")
    assert asked == [
        ("imports", None, None, there),
        ("look", (), "openai/gpt-4o", None),
        ("look", (TASK,), None, there),
    ]


def test_other_weights_or_samples_have_another_key(model: ModelSource) -> None:
    other = model.model_copy(update={"fingerprint": "other"})
    assert keys(other) != keys(model)
    work = [
        evaluation_plan.answer_call(
            Recipe(), model, "role_colon", TASK, EvaluationPlan(None, {TASK: samples})
        ).cache_key
        for samples in ("some", "others")
    ]
    assert work[0] != work[1]


def test_prompts_that_were_checked_elsewhere_are_checked_where_data_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained: the key of checked prompts says whether NLTK's data were there."""
    (tmp_path / "prompts.jsonl").write_text("")
    recipe = Recipe.model_validate(
        {"evaluate": {"ifeval_path": str(tmp_path / "prompts.jsonl")}, "track": {"runs_dir": tmp_path / "runs"}}
    )
    made: list[str] = []

    def launch(call: StageCall[Any], store: Store) -> None:
        made.append(call.stage.name)
        with store.write(call.stage.name, call.cache_key) as draft:
            draft.publish(PromptSet(path=draft.final, fingerprint="", source="", prompts=0))

    monkeypatch.setattr("dpo_core.process.run_stage.launch", launch)
    for there, expected in ((True, 1), (True, 1), (False, 2)):
        monkeypatch.setattr(nltk_data, "is_installed", lambda directory, there=there: there)
        run_stage(store_of(recipe), evaluation_plan.prompts_call(recipe, str(tmp_path / "prompts.jsonl")))
        assert len(made) == expected


def test_the_splitter_is_found_where_nltk_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk_data, "search_paths", lambda directory: [tmp_path / "a", tmp_path / "b"])
    assert not nltk_data.is_installed(None)
    (tmp_path / "b" / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    assert nltk_data.is_installed(None)


def test_every_place_that_nltk_knows_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in a process of its own, for tests add to NLTK's list."""
    monkeypatch.setenv("NLTK_DATA", "/some/place:/another")
    words = [sys.executable, "-c", "import nltk.data; print(*nltk.data.path, sep='\\n')"]
    known = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert known[:2] == ["/some/place", "/another"]
    assert [str(place) for place in nltk_data.search_paths(None)] == known


def test_tasks_are_looked_at_once_and_only_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def launch(call: StageCall[Any], store: Store) -> None:
        asked.append((call.stage.name, call.request.tasks))  # type: ignore[attr-defined]
        with store.write(call.stage.name, call.cache_key) as draft:
            draft.publish(TaskContents(path=draft.final, digests={TASK: "1319 samples"}))

    monkeypatch.setattr("dpo_core.process.run_stage.launch", launch)
    settings, store = EvaluateSettings(), store_of(Recipe(track=TrackSettings(runs_dir=tmp_path)))
    assert evaluation_plan.plan(settings, None, store, {}).task_digests == {}
    both = Recipe.model_validate({"evaluate": BOTH})
    assert evaluation_plan.plan(both.evaluate, None, store, {}).task_digests == {TASK: "1319 samples"}
    assert asked == [("look", (TASK,))]
    assert not (store.root / "look").exists()


def test_infrequent_prompts_are_brought_without_ifeval_among_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("")
    settings: dict[str, Any] = {"tasks": (), "ifeval_path": str(path)}
    assert evaluation_plan.prompts_source(Recipe.model_validate({"evaluate": settings})) is None
    watched = Recipe.model_validate({"evaluate": settings | {"infrequent_prompts": 4}})
    assert evaluation_plan.prompts_source(watched) == str(path)
