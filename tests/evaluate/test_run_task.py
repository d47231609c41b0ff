"""One model, one task: answers kept and scored, interruptions survived, judged against another's."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from dpo_core.cache.store import Store
from dpo_core.config.recipe import EvaluateSettings
from dpo_core.errors import EvaluationError
from dpo_core.evaluate import run_task
from dpo_core.evaluate.ifeval import ifeval_prompts
from dpo_core.evaluate.inspect.run_inspect import TaskRun, run_inspect_task
from dpo_core.evaluate.judge import judge_pairs
from dpo_core.evaluate.run_task import read_sample_results
from dpo_core.evaluate.sample_results import SampleResult
from dpo_core.inference.decoding import DecodedTokens
from dpo_core.inference.response_cache import ResponseCache
from dpo_core.inference.sampling import TokenLogps
from dpo_core.model.locate import describe
from dpo_core.records import PromptSet, TaskResult
from dpo_core.stages.evaluation.answer import AnswerRequest
from dpo_core.stages.evaluation.prompts import PromptsRequest

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    # inspect-ai's own retries are written for an older tenacity.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
]

PromptFile = Callable[[dict[str, dict[str, Any]]], Path]
ASKED: dict[str, dict[str, Any]] = {
    "Tell me of the park.": {"punctuation:no_comma": {}},
    "Who is Tom?": {"punctuation:no_comma": {}, "startend:quotation": {}},
    "Why?": {"keywords:forbidden_words": {"forbidden_words": ["zebra"]}},
}
TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def words():
    samples = [Sample(id=name, input=f"Tell me of the {name}.", target="e") for name in ("park", "dog", "ball")]
    return Task(dataset=samples, solver=generate(), scorer=includes())
"""


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Leave no stream of inspect-ai to be collected in another test."""
    yield
    gc.collect()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def told(store: Store, prompt_file: PromptFile) -> PromptSet:
    with store.write("prompts", "key") as draft:
        ifeval_prompts.run(PromptsRequest(source=str(prompt_file(ASKED)), seed=0, limit=None, demo_pairs=64), draft)
    record = store.find("prompts", "key", PromptSet)
    assert record is not None
    return record


def request(stories: Path, task: str, told: PromptSet | None, **settings: Any) -> AnswerRequest:
    return AnswerRequest(
        model=describe(stories, "stories260K"),
        renderer_name="role_colon",
        task=task,
        prompts=told,
        evaluate=EvaluateSettings(max_new_tokens=16, **settings),
        precision="fp32",
    )


def asked(store: Store, what: AnswerRequest, key: str = "key") -> TaskResult:
    with store.write("answer", key) as draft:
        run_task.run(what, draft)
    result = store.find("answer", key, TaskResult)
    assert result is not None
    return result


def test_ifeval_s_answers_carry_the_four_measures(store: Store, stories: Path, told: PromptSet) -> None:
    result = asked(store, request(stories, "ifeval", told))
    answers = read_sample_results(result)
    outcomes = [json.loads(line) for line in (result.path / "outcomes.jsonl").read_text().splitlines()]
    assert [one.id for one in answers] == ["1000", "1001", "1002"]
    strict = [one.values["prompt_strict"] for one in answers]
    assert strict == [float(all(outcome["strict"])) for outcome in outcomes]
    assert result.metrics["prompt_strict_acc"] == pytest.approx(sum(strict) / 3)
    assert answers[1].sizes == {"inst_strict": 2, "inst_loose": 2}
    assert (result.samples, result.failed) == (3, 0)


def test_any_task_of_inspect_s_is_asked(store: Store, stories: Path, tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text(TASK)
    result = asked(store, request(stories, f"{tmp_path / 'tales.py'}@words", None, task_limit=2))
    answers = read_sample_results(result)
    assert [one.id for one in answers] == ["dog", "park"]
    assert [one.values for one in answers] == [{"includes": float("e" in one.response.lower())} for one in answers]
    assert result.metrics["accuracy"] == pytest.approx(sum(one.values["includes"] for one in answers) / 2)
    assert read_eval_log(str(result.path / "words.eval")).status == "success"


def test_what_was_answered_before_an_interruption_is_not_asked_again(
    store: Store, stories: Path, told: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after the second answer; the next attempt asks for the third alone."""
    whole = asked(store, request(stories, "ifeval", told), "undisturbed")
    add = ResponseCache.add

    def dying(ledger: ResponseCache, key: str, completion: DecodedTokens) -> None:
        add(ledger, key, completion)
        if ledger.path and len(ledger.path.read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ResponseCache, "add", dying)
        with pytest.raises((EvaluationError, KeyboardInterrupt)):
            asked(store, request(stories, "ifeval", told), "cut off")
    kept = store.entry("answer", "cut off").with_name(".cut off.answers.jsonl")
    with kept.open("a") as torn:
        torn.write('["half a li')
    counted: list[str] = []

    def counting(ledger: ResponseCache, key: str, completion: DecodedTokens) -> None:
        counted.append(key)
        add(ledger, key, completion)

    monkeypatch.setattr(ResponseCache, "add", counting)
    result = asked(store, request(stories, "ifeval", told), "cut off")
    assert len(counted) == 1
    assert (result.metrics, read_sample_results(result)) == (whole.metrics, read_sample_results(whole))
    assert not kept.exists()


def test_the_ledger_keeps_scores(tmp_path: Path) -> None:
    completion = DecodedTokens((4, 5), True, (TokenLogps(-0.25, ((4, -0.25), (7, -2.5))), TokenLogps(-1.5)))
    ResponseCache(tmp_path / "ledger").add("key", completion)
    assert ResponseCache(tmp_path / "ledger").get("key") == completion


def test_a_task_without_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text(TASK.replace('("park", "dog", "ball")', "()"))
    with pytest.raises(EvaluationError, match=r"samples|dataset|empty"):
        run_inspect_task("mockllm/model", TaskRun(f"{tmp_path / 'tales.py'}@words", "words", tmp_path))


@pytest.mark.parametrize(("samples", "failing", "ends"), [(20, 1, True), (40, 3, False)])
def test_five_in_a_hundred_may_fail_and_no_more(tmp_path: Path, samples: int, failing: int, ends: bool) -> None:
    words = "tuple(f'{place}' for place in range(" + str(samples) + "))"
    (tmp_path / "tales.py").write_text(TASK.replace('("park", "dog", "ball")', words))
    said = iter(range(samples))

    def output(*_: Any) -> ModelOutput:
        if next(said) < failing:
            raise MemoryError("this one does not fit")
        told = ModelOutput.from_content("mockllm/model", "e")
        told.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return told

    model = get_model("mockllm/model", custom_outputs=output, memoize=False)
    asked = TaskRun(f"{tmp_path / 'tales.py'}@words", "words", tmp_path)
    if ends:
        assert run_inspect_task(model, asked).status == "success"
        return
    with pytest.raises(EvaluationError, match="At most 5% of the prompts may fail"):
        run_inspect_task(model, asked)


def test_a_task_that_imports_what_is_not_there_comes_with_the_pip_line(tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text("import a_package_of_tales\n" + TASK)
    with pytest.raises(EvaluationError, match="pip install a_package_of_tales"):
        run_inspect_task("mockllm/model", TaskRun(f"{tmp_path / 'tales.py'}@words", "words", tmp_path))


def test_a_package_of_tasks_that_lacks_something_comes_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inspect-ai only says that it found no tasks."""
    told = tmp_path / "fables-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: fables\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[inspect_ai]\nfables = fables\n")
    (tmp_path / "fables.py").write_text("import a_package_of_fables\n" + TASK)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EvaluationError, match="pip install a_package_of_fables"):
        run_inspect_task("mockllm/model", TaskRun("fables/words", "fables/words", tmp_path))


def sampled(name: str, response: str) -> SampleResult:
    return SampleResult(
        id=name, prompt=f"Ask {name}.", response=response, values={}, sizes={}, stop_reason="stop", tokens=1
    )


ONE = [sampled("a", "long and good"), sampled("b", "x"), sampled("c", "the same"), sampled("d", "even")]
OTHER = [sampled("a", "short"), sampled("b", "longer"), sampled("c", "the same"), sampled("d", "odd!")]


def judging(verdict: Callable[[str, str], str]) -> Any:
    """A judge of inspect's own that never calls anyone: its verdict is a function of both replies."""

    def output(input: Any, *_: Any) -> ModelOutput:
        first, second = input[-1].text.split("[Reply A]\n")[1].split("\n\n[Reply B]\n")
        said = verdict(first, second.split("\n\nGive your reasons")[0])
        told = ModelOutput.from_content("mockllm/model", f"Because.\n**Verdict: {said}**")
        told.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return told

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges said is kept by inspect-ai: here, for one test."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))


def test_a_judge_sees_both_orders(tmp_path: Path) -> None:
    def longer(first: str, second: str) -> str:
        return "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"

    verdicts = judge_pairs(judging(longer), ONE, OTHER, tmp_path)
    assert [(one.id, one.shown_first, one.shown_second) for one in verdicts] == [
        ("a", 1, 1),
        ("b", 0, 0),
        ("c", 0.5, 0.5),
        ("d", 0.5, 0.5),
    ]


def test_a_judge_that_favours_a_place_tells_nothing(tmp_path: Path) -> None:
    verdicts = judge_pairs(judging(lambda first, second: "A"), ONE, OTHER, tmp_path)
    assert [one.worth for one in verdicts] == [0.5] * 4
    assert verdicts[0].shown_first != verdicts[0].shown_second


def test_a_judge_whose_verdicts_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="gave no verdict"):
        judge_pairs(judging(lambda first, second: "neither, really"), ONE, OTHER, tmp_path)


def test_a_judge_without_its_key_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(EvaluationError, match=r"judge could not be started: .*(ANTHROPIC_API_KEY|pip install)"):
        judge_pairs("anthropic/claude-sonnet-4-0", ONE, OTHER, tmp_path)


def test_two_models_without_a_prompt_in_common_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no prompt in common"):
        judge_pairs("mockllm/model", ONE[:1], OTHER[1:], tmp_path)
