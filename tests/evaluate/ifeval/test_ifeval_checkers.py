"""IFEval checkers and metrics equal the official ones."""

import json
import random
from pathlib import Path
from typing import Any

import nltk
import pytest
from inspect_ai.scorer import SampleScore, Score

from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, FollowedInstructions, IFEvalPrompt, score
from dpo_core.evaluate.ifeval.ifeval_task import accuracies, verdict_counts

CAPITALS = "change_case:english_capital"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(name: str, **arguments: Any) -> IFEvalPrompt:
    return IFEvalPrompt(key=1, prompt="Do.", instruction_id_list=[name], kwargs=[arguments])


@pytest.fixture(scope="module")
def official(ifeval_data: Path) -> dict[int, dict[str, Any]]:
    return {row["key"]: row for row in lines(ifeval_data / "official_scorer_gpt4_verdicts.jsonl")}


@pytest.fixture(scope="module")
def verdicts(ifeval_data: Path, punkt: Path) -> dict[int, FollowedInstructions]:
    """Verdicts on GPT-4's responses to all 541 prompts (2 s)."""
    nltk.data.path.insert(0, str(punkt))
    rows = [ROW.validate_python(row) for row in lines(ifeval_data / "input_data_20231215.jsonl")]
    responses = {
        line["prompt"]: line["response"]
        for line in lines(ifeval_data / "input_response_data_gpt4_20231107_145030.jsonl")
    }
    verdicts = {row.key: score(row, responses[row.prompt]) for row in rows}
    nltk.data.path.remove(str(punkt))
    return verdicts


def test_verdicts_are_the_official_ones(
    verdicts: dict[int, FollowedInstructions], official: dict[int, dict[str, Any]]
) -> None:
    """Every instruction of the 539 prompts whose arguments are all given, strict and loose."""
    assert len(verdicts) == 541
    actual = {key: (list(verdict.strict), list(verdict.loose)) for key, verdict in verdicts.items()}
    expected = {key: (row["strict"], row["loose"]) for key, row in official.items() if row["deterministic"]}
    assert len(expected) == 539
    assert {key for key in expected if actual[key] != expected[key]} == set()


@pytest.fixture(scope="module")
def scores(verdicts: dict[int, FollowedInstructions]) -> list[SampleScore]:
    return [SampleScore(score=Score(value=verdict_counts(verdict))) for verdict in verdicts.values()]


def test_metrics_are_the_published_ones(scores: list[SampleScore]) -> None:
    """GPT-4's counts, of 541 prompts and 834 instructions; two prompts' arguments are drawn, hence the ranges."""
    metrics = accuracies()(scores)
    expected = {
        "prompt_strict": (415, 417, 541),
        "inst_strict": (696, 698, 834),
        "prompt_loose": (429, 431, 541),
        "inst_loose": (712, 714, 834),
    }
    for name, (least, most, total) in expected.items():
        count = metrics[f"{name}_acc"] * total
        assert count == pytest.approx(round(count))
        assert least <= round(count) <= most, name
    assert metrics["prompt_strict_stderr"] == pytest.approx((0.771 * 0.229 / 540) ** 0.5, rel=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [541, 7, 1])
def test_metrics_are_those_of_inspect_evals(scores: list[SampleScore], count: int) -> None:
    """Names, values and clustered standard errors; its import warns of deprecated pydantic 1 features."""
    peer = pytest.importorskip("inspect_evals.ifeval")
    expected = peer.if_metric()(scores[:count])
    assert accuracies()(scores[:count]) == pytest.approx(expected, abs=1e-12)


def test_missing_arguments_are_drawn_deterministically() -> None:
    """Checkers draw them from the global generator; its state must not change verdicts, and is restored."""
    open_row = row("length_constraints:number_words")
    text = "word " * 300
    random.seed(0)
    before = random.getstate()
    verdicts = {score(open_row, text), *(seeded(seed, open_row, text) for seed in range(20))}
    random.seed(0)
    assert len(verdicts) == 1
    score(open_row, text)
    assert random.getstate() == before


def seeded(seed: int, prompt: IFEvalPrompt, text: str) -> FollowedInstructions:
    random.seed(seed)
    return score(prompt, text)


def test_language_detection_is_deterministic() -> None:
    prompt, text = row(CAPITALS), "OK A B C"
    assert len({score(prompt, text) for _ in range(20)}) == 1


def test_an_empty_response_follows_nothing() -> None:
    assert score(row("punctuation:no_comma"), " \n") == FollowedInstructions(strict=(False,), loose=(False,))


@pytest.mark.parametrize(
    ("response", "strict"),
    [
        ("no commas here", True),
        ("Sure, here it is:\nno commas here", False),
        ("no commas here\nDone, I hope", False),
        ("Well,\nno commas here\nbye, bye", False),
    ],
)
def test_loose_forgives_the_first_and_the_last_line(response: str, strict: bool) -> None:
    assert score(row("punctuation:no_comma"), response) == FollowedInstructions(strict=(strict,), loose=(True,))


def test_loose_forgives_asterisks() -> None:
    prompt = row("startend:end_checker", end_phrase="The end.")
    assert score(prompt, "It was so. **The end.**\n*") == FollowedInstructions(strict=(False,), loose=(True,))


def test_the_repeat_prompt_checker_gets_the_prompt() -> None:
    prompt = row("combination:repeat_prompt", prompt_to_repeat="Say it")
    assert score(prompt, "Say it. Done.").strict == (True,)
    assert score(prompt, "Done. Say it").strict == (False,)
