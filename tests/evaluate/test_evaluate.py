"""Evaluation stage with a real model, inspect-ai and the official checkers."""

import gc
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from inspect_ai import score as rescore
from inspect_ai.log import read_eval_log

from dpo_core.cache.store import Store
from dpo_core.config.recipe import EvaluateSettings, Recipe, RenderSettings, TrainSettings
from dpo_core.data.preference import Preference, write_pairs
from dpo_core.errors import EvaluationError
from dpo_core.evaluate import evaluate, run_task
from dpo_core.evaluate.ifeval import ifeval_prompts
from dpo_core.evaluate.ifeval.ifeval_checkers import FollowedInstructions, score
from dpo_core.evaluate.ifeval.ifeval_task import ifeval, instruction_following
from dpo_core.evaluate.inspect import run_inspect
from dpo_core.evaluate.inspect.inspect_errors import InspectPrerequisiteError
from dpo_core.evaluate.task_names import IFEVAL_VERSION
from dpo_core.inference import generator, torch_engine
from dpo_core.inference.paged_engine import PagedEngine
from dpo_core.model.locate import describe
from dpo_core.pair import Pair
from dpo_core.pipeline import evaluation_plan
from dpo_core.pipeline.evaluation_plan import EvaluationPlan
from dpo_core.records import DataReport, EvalResult, ModelSource, PairSet, PromptSet, ReferenceSet, RenderedSet
from dpo_core.render import render
from dpo_core.render.formats.role_colon import RoleColon
from dpo_core.stages.evaluate import EvaluateRequest
from dpo_core.stages.evaluation.prompts import PromptsRequest
from dpo_core.stages.render import RenderRequest
from dpo_core.stages.score_reference import ScoreRequest
from dpo_core.train import reference
from dpo_core.train.validation import source_metrics
from tests.evaluate.test_run_task import TASK

# inspect-ai leaves streams unclosed; garbage collection would report them in a later test.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")

PromptFile = Callable[[dict[str, dict[str, Any]]], Path]
PAIRS, TOKENS = 6, 24
ASKED: dict[str, dict[str, Any]] = {
    "Tell me of the park.": {"punctuation:no_comma": {}},
    "Who is Tom?": {"punctuation:no_comma": {}, "startend:quotation": {}},
    "Say something about a dog.": {"length_constraints:number_words": {"relation": "at least", "num_words": 5}},
    "Why?": {"keywords:forbidden_words": {"forbidden_words": ["zebra"]}},
}


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Collect inspect-ai's unclosed streams in the test that created them."""
    yield
    gc.collect()


@dataclass(frozen=True)
class World:
    """Outputs of the stages before this one."""

    store: Store
    model: ModelSource
    rendered: RenderedSet
    reference: ReferenceSet

    def request(self, prompts: PromptSet | None, **settings: Any) -> EvaluateRequest:
        tasks = {} if prompts else {"tasks": ()}
        recipe = Recipe(evaluate=EvaluateSettings(max_new_tokens=TOKENS, **tasks | settings))
        calls = evaluation_plan.answer_calls(recipe, self.model, self.rendered.renderer_name, EvaluationPlan(prompts))
        return EvaluateRequest(
            model=self.model,
            rendered=self.rendered,
            reference=self.reference,
            answers=evaluation_plan.keyed(calls),
            evaluate=recipe.evaluate,
            train=recipe.train,
        )

    def evaluate(self, request: EvaluateRequest, key: str) -> EvalResult:
        """Run the stage under this key, with keys of its own for the responses: none are cached."""
        own = [keyed.model_copy(update={"key": f"{key}-{keyed.key}"}) for keyed in request.answers]
        return self.evaluate_cached(request.model_copy(update={"answers": tuple(own)}), key)

    def evaluate_cached(self, request: EvaluateRequest, key: str) -> EvalResult:
        """Run the stage under this key; responses may be cached."""
        with self.store.write("evaluate", key) as draft:
            evaluate.run(request, draft)
        result = self.store.find("evaluate", key, EvalResult)
        assert result is not None
        return result


def preference(index: int) -> Preference:
    user = {"role": "user", "content": f"Tell me story number {index}."}
    sides = Pair("Once upon a time, there was a girl.", f"No {index} no no.")
    messages = sides.map(lambda text: [{"role": "assistant", "content": text}])
    return Preference([user], messages, source=("even", "odd ones!")[index % 2])  # type: ignore[arg-type, list-item]


@pytest.fixture
def world(stories: Path, tmp_path: Path) -> World:
    store, model = Store(tmp_path / "store"), describe(stories, "stories260K")
    for split in ("train", "test"):
        write_pairs(tmp_path / f"{split}.arrow", [preference(index) for index in range(PAIRS)])
    report = DataReport(rows_read=PAIRS, kept=PAIRS)
    pairs = PairSet(
        path=tmp_path,
        fingerprint="pairs",
        dataset="six",
        source="six",
        train_pairs=PAIRS,
        test_pairs=PAIRS,
        train_report=report,
        test_report=report,
    )
    with store.write("render", "key") as draft:
        render.run(RenderRequest(pairs=pairs, model=model, render=RenderSettings(renderer_name="role_colon")), draft)
    rendered = store.find("render", "key", RenderedSet)
    assert rendered is not None
    with store.write("score_reference", "key") as draft:
        reference.run(ScoreRequest(rendered=rendered, model=model, train=TrainSettings(batch_size=2)), draft)
    scored = store.find("score_reference", "key", ReferenceSet)
    assert scored is not None
    return World(store, model, rendered, scored)


@pytest.fixture
def prompt_set(world: World, prompt_file: PromptFile) -> PromptSet:
    with world.store.write("prompts", "key") as draft:
        ifeval_prompts.run(PromptsRequest(source=str(prompt_file(ASKED)), seed=0, limit=None, demo_pairs=64), draft)
    record = world.store.find("prompts", "key", PromptSet)
    assert record is not None
    return record


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_of_prompts_and_pairs(world: World, prompt_set: PromptSet) -> None:
    """Stored verdicts equal the checkers' on the stored responses; the metrics follow from them."""
    result = world.evaluate(world.request(prompt_set, num_samples=3), "first")
    outcomes = lines(result.path / "outcomes.jsonl")
    rows = {row.key: row for _, row in ifeval_prompts.read_prompts(prompt_set.path)}
    assert [outcome["key"] for outcome in outcomes] == list(rows)
    for outcome in outcomes:
        verdict = score(rows[outcome["key"]], outcome["response"])
        assert verdict == FollowedInstructions(tuple(outcome["strict"]), tuple(outcome["loose"]))
    metrics = result.metrics
    strict = [verdict for outcome in outcomes for verdict in outcome["strict"]]
    assert metrics["prompt_strict_acc"] == sum(all(outcome["strict"]) for outcome in outcomes) / 4
    assert metrics["inst_strict_acc"] == pytest.approx(sum(strict) / 5)
    assert metrics["ifeval/number_words"] == outcomes[2]["strict"][0] == 1
    assert 0 < metrics["prompt_strict_acc"] < 1
    assert {"prompt_loose_stderr", "inst_loose_acc", "final_acc", "final_stderr"} <= metrics.keys()
    assert result.prompts_fingerprint == prompt_set.fingerprint
    samples = [(outcome["prompt"], outcome["response"]) for outcome in outcomes[:3]]
    assert [(line["prompt"], line["answer"]) for line in lines(result.path / "samples.jsonl")] == samples


def test_cached_responses_are_used_with_another_beta(
    world: World, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another beta changes the metrics of held-out pairs only; dpo eval uses the same cached responses."""
    first = world.evaluate_cached(world.request(prompt_set), "first")
    monkeypatch.setattr(run_task, "generate_and_score", lambda *_: pytest.fail("responses were generated again"))
    request = world.request(prompt_set)
    second = world.evaluate_cached(request.model_copy(update={"train": TrainSettings(dpo_beta=0.7)}), "second")
    for name in ("outcomes.jsonl", "samples.jsonl"):
        assert (second.path / name).read_bytes() == (first.path / name).read_bytes()
    assert read_eval_log(str(second.path / "ifeval.eval")).status == "success"
    assert second.metrics["prompt_strict_acc"] == first.metrics["prompt_strict_acc"]
    assert second.settings["engine"] == "torch"
    [entry] = world.store.root.glob("answer/*")
    assert entry.name == request.answers[0].key


def test_with_eval_python_missing_responses_are_an_error(world: World, prompt_set: PromptSet) -> None:
    with pytest.raises(EvaluationError, match=r"Cached responses are missing or damaged\. With eval_python"):
        world.evaluate(world.request(prompt_set, eval_python=Path("/elsewhere/bin/python")), "first")


def test_eval_engine_selects_the_engine(world: World, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderer has no stop strings: with them, continuous batching falls back to the torch engine."""
    monkeypatch.setattr(RoleColon, "stop_strings", ())
    generate_paged, batch_sizes = PagedEngine.generate_paged, []

    def recording(engine: PagedEngine, prompts: Any, limits: Any, *rest: Any) -> None:
        batch_sizes.append(len(limits))
        generate_paged(engine, prompts, limits, *rest)

    monkeypatch.setattr(PagedEngine, "generate_paged", recording)
    results = [world.evaluate(world.request(prompt_set, eval_engine=name), name) for name in ("torch", "paged")]
    assert [result.settings["engine"] for result in results] == ["torch", "paged"]
    assert batch_sizes == [4]
    assert lines(results[0].path / "outcomes.jsonl") == lines(results[1].path / "outcomes.jsonl")


def test_a_model_that_never_stops_has_no_ended_response(world: World, prompt_set: PromptSet) -> None:
    result = world.evaluate(world.request(prompt_set), "first")
    assert {outcome["stop_reason"] for outcome in lines(result.path / "outcomes.jsonl")} == {"max_tokens"}
    assert (result.metrics["ended_share"], result.metrics["answer_tokens"]) == (0, TOKENS)


def test_the_reference_has_a_loss_of_ln_2_on_held_out_pairs(world: World) -> None:
    result = world.evaluate(world.request(None, tasks=()), "pairs only")
    assert result.metrics["test/dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.metrics["test/accuracy"] == 0.5
    assert result.metrics["test/nll_chosen"] < result.metrics["test/nll_rejected"]
    assert (result.prompts_fingerprint, lines(result.path / "outcomes.jsonl")) == ("", [])


def test_metrics_by_source(world: World) -> None:
    """Each source has its accuracy, margin and number of pairs."""
    metrics = world.evaluate(world.request(None, tasks=()), "pairs only").metrics
    assert {name for name in metrics if name.startswith("source/")} == {
        f"source/{kind}_{source}" for kind in ("accuracy", "margin", "num_pairs") for source in ("even", "odd ones_")
    }
    assert metrics["source/num_pairs_even"] == metrics["source/num_pairs_odd ones_"] == PAIRS / 2
    assert metrics["source/accuracy_even"] == 0.5


def test_metrics_by_source_are_means_of_the_source_s_rows() -> None:
    table = torch.zeros(5, 8, dtype=torch.float64)
    table[:, 1] = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0])
    table[:, 2] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    metrics = source_metrics(table, ["a", "b", "a", "", "a"])
    assert (metrics["source/accuracy_a"], metrics["source/margin_a"], metrics["source/num_pairs_a"]) == (1, 3, 3)
    assert (metrics["source/accuracy_b"], metrics["source/accuracy_none"], metrics["source/margin_none"]) == (0, 0.5, 4)
    assert source_metrics(table, ["a"] * 5) == source_metrics(table, []) == {}


def test_without_tasks_samples_are_held_out_prompts(world: World) -> None:
    result = world.evaluate(world.request(None, tasks=(), num_samples=2), "pairs only")
    samples = lines(result.path / "samples.jsonl")
    assert [sample["prompt"].strip() for sample in samples] == [
        f"User: Tell me story number {index}.\n\nAssistant:" for index in range(2)
    ]
    assert all(sample["answer"] and sample["tokens"] == TOKENS for sample in samples)


def test_results_do_not_depend_on_the_batch_size(world: World, prompt_set: PromptSet) -> None:
    first, second = (world.evaluate(world.request(prompt_set, eval_batch_size=size), str(size)) for size in (4, 2))
    assert first.metrics == second.metrics
    assert first.fingerprint == second.fingerprint


def test_the_log_of_inspect_is_kept(world: World, prompt_set: PromptSet) -> None:
    result = world.evaluate(world.request(prompt_set), "first")
    log = read_eval_log(str(result.path / "ifeval.eval"))
    assert (log.status, log.eval.task, log.eval.model) == ("success", "ifeval", "dpo/stories260K")
    assert [sample.id for sample in log.samples or []] == [1000, 1001, 1002, 1003]


def test_failing_samples_fail_the_stage_without_output(
    world: World, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("the batch does not fit")

    monkeypatch.setattr("dpo_core.inference.torch_engine.decode", broken)
    with pytest.raises(EvaluationError, match=r"4 of 4 samples failed: .*the batch does not fit"):
        world.evaluate(world.request(prompt_set), "first")
    assert not world.store.entry("evaluate", "first").exists()


def test_a_few_failing_samples_are_counted(
    world: World, prompt_file: PromptFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure of 21 is below 5 %."""
    texts = [f"Tell me of number {index}." for index in range(20)]
    file = prompt_file({text: {"punctuation:no_comma": {}} for text in [*texts, "Fail."]})
    with world.store.write("prompts", "more") as draft:
        ifeval_prompts.run(PromptsRequest(source=str(file), seed=0, limit=None, demo_pairs=64), draft)
    more_prompts = world.store.find("prompts", "more", PromptSet)
    decode = torch_engine.decode

    def failing(model: Any, prompts: Any, decoding: Any, *rest: Any) -> Any:
        if any("Fail" in decoding.tokenizer.decode(prompt) for prompt in prompts):
            raise MemoryError("this one does not fit")
        return decode(model, prompts, decoding, *rest)

    monkeypatch.setattr(torch_engine, "decode", failing)
    result = world.evaluate(world.request(more_prompts), "first")
    outcomes = lines(result.path / "outcomes.jsonl")
    assert (result.failed, result.metrics["failed_samples"]) == (1, 1)
    assert [outcome["error"] is None for outcome in outcomes] == [True] * 20 + [False]
    assert "this one does not fit" in outcomes[-1]["error"]
    assert result.metrics["prompt_strict_acc"] == sum(outcome["strict"][0] for outcome in outcomes[:20]) / 20


def test_empty_responses_follow_no_instruction(
    world: World, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's likeliest first token is a stop token."""
    load_generator = evaluate.load_generator

    def silent(model: Any, *words: Any) -> generator.ResponseGenerator:
        response_generator = load_generator(model, *words)
        [end] = response_generator.renderer.stop_token_ids

        def only(module: Any, inputs: Any, logits: Any) -> Any:
            logits[..., end] = 1e4
            return logits

        model.lm_head.register_forward_hook(only)
        return response_generator

    monkeypatch.setattr(evaluate, "load_generator", silent)
    result = world.evaluate(world.request(prompt_set), "first")
    assert [(line["response"], line["stop_reason"]) for line in lines(result.path / "outcomes.jsonl")] == [
        ("", "stop")
    ] * 4
    names = ("prompt_strict_acc", "prompt_loose_acc", "ended_share", "answer_tokens", "loop_share")
    assert [result.metrics[name] for name in names] == [0, 0, 1, 1, 0]


def test_a_prompt_that_fills_the_context_gets_an_empty_response(world: World, prompt_file: PromptFile) -> None:
    """The context has 512 positions; the other prompt gets a response."""
    file = prompt_file({"word " * 600: {"punctuation:no_comma": {}}, "Why?": {"punctuation:no_comma": {}}})
    with world.store.write("prompts", "long") as draft:
        ifeval_prompts.run(PromptsRequest(source=str(file), seed=0, limit=None, demo_pairs=64), draft)
    result = world.evaluate(world.request(world.store.find("prompts", "long", PromptSet)), "first")
    full, other = lines(result.path / "outcomes.jsonl")
    assert (full["response"], full["stop_reason"], full["strict"]) == ("", "model_length", [False])
    assert (other["stop_reason"], other["tokens"], result.failed) == ("max_tokens", TOKENS, 0)


def test_the_record_holds_model_tasks_and_settings(world: World, prompt_set: PromptSet) -> None:
    result = world.evaluate(world.request(prompt_set, eval_seed=7), "first")
    assert result.model_fingerprint == world.model.fingerprint
    assert result.tasks == {"ifeval": IFEVAL_VERSION}
    assert (result.settings["eval_seed"], result.settings["max_new_tokens"]) == (7, TOKENS)
    assert result.settings["renderer_name"] == "role_colon"
    log = read_eval_log(str(result.path / "ifeval.eval"), header_only=True)
    assert (str(log.eval.task_version), log.eval.model_generate_config.seed) == (IFEVAL_VERSION, 7)


def test_an_evaluation_loads_its_model_once(
    world: World, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inspect-ai loads a model by name to find its context length, unless the length is registered."""
    loaded: list[str] = []
    monkeypatch.setattr("dpo_core.evaluate.inspect.provider.find_model", loaded.append)
    world.evaluate(world.request(prompt_set), "once")
    assert loaded == []


def test_several_tasks(world: World, prompt_set: PromptSet, tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text(TASK)
    result = world.evaluate(world.request(prompt_set, tasks=("ifeval", f"{tmp_path / 'tales.py'}@words")), "both")
    assert {"prompt_strict_acc", "words/accuracy"} <= result.metrics.keys()
    assert list(result.tasks) == ["ifeval", "words"]
    assert {path.name for path in result.path.glob("*.eval")} == {"ifeval.eval", "words.eval"}


def test_missing_nltk_data_fail_before_generation(prompt_file: PromptFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for the task alone, as inspect eval builds it."""
    file = prompt_file(
        {"Count.": {"length_constraints:number_sentences": {"relation": "at least", "num_sentences": 2}}}
    )
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(InspectPrerequisiteError, match="needs NLTK's sentence splitter punkt_tab"):
        ifeval(str(file))


def test_a_log_of_another_task_cannot_be_scored(world: World, prompt_set: PromptSet, tmp_path: Path) -> None:
    """For example a log of inspect_evals/ifeval, whose metadata differ."""
    log = read_eval_log(str(world.evaluate(world.request(prompt_set), "first").path / "ifeval.eval"))
    for sample in log.samples or []:
        sample.metadata = {"prompt": sample.input, "instruction_id_list": ["punctuation:no_comma"]}
    with pytest.raises(InspectPrerequisiteError, match="no IFEval row"):
        rescore(log, instruction_following(), model="mockllm/model", display="none")


def test_an_interrupted_evaluation_is_an_error() -> None:
    """After an interrupt inspect-ai returns no log and raises no exception."""
    with pytest.raises(EvaluationError, match="interrupted"):
        run_inspect.check_log([], 4)


def test_a_log_that_lost_samples_is_an_error(world: World, prompt_set: PromptSet) -> None:
    log = read_eval_log(str(world.evaluate(world.request(prompt_set), "first").path / "ifeval.eval"))
    with pytest.raises(EvaluationError, match="4 of 5 samples are in the log"):
        run_inspect.check_log([log], 5)
