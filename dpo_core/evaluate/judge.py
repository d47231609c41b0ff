"""LLM judge: a stage in which a model of inspect-ai compares two models' responses to the same prompts.

The judge sees every pair in both orders, since judges have a position bias (Zheng et al., arXiv 2306.05685); each
order counts half.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState, generate

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.inspect.run_inspect import TaskRun, run_inspect_task
from dpo_core.evaluate.paired_tests import bootstrap, mcnemar
from dpo_core.evaluate.run_task import read_sample_results, write_jsonl
from dpo_core.evaluate.sample_results import SampleResult
from dpo_core.records import Judgement
from dpo_core.stages.evaluation.judge import JudgeRequest
from dpo_core.system.progress import Progress

NAME, VERDICTS = "judge", "verdicts.jsonl"
# Bounded retries and timeout: an API that does not respond must fail, not block the evaluation.
API_LIMITS = GenerateConfig(max_retries=5, timeout=300)
VERDICT_SCORES = {"A": 1.0, "B": 0.0, "C": 0.5}
VERDICT = re.compile(r"verdict\W*([ABC])\b", re.IGNORECASE)
TEMPLATE = """Two assistants replied to the same request. Judge which reply is better: which one does all that was \
asked, and is correct, clear and helpful. Neither length nor the order of the replies counts.

[Request]
{prompt}

[Reply A]
{first}

[Reply B]
{second}

Give your reasons in a sentence or two, then end with one line: "Verdict: A", "Verdict: B", or "Verdict: C" if neither \
is better."""


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """Score of the first model's response when shown first and second: 1 preferred, 0.5 tie, 0 not preferred."""

    id: str
    shown_first: float
    shown_second: float

    @property
    def score(self) -> float:
        """Mean over both orders."""
        return (self.shown_first + self.shown_second) / 2


def run(request: JudgeRequest, draft: Draft) -> None:
    """Judge the two results; publish a Judgement.

    Raises EvaluationError when no prompt is in common, the judge is unavailable, or too many of its responses have no
    verdict.
    """
    verdicts = judge_pairs(
        request.judge, read_sample_results(request.first), read_sample_results(request.second), draft.path
    )
    lines = [
        {"id": verdict.id, "shown_first": verdict.shown_first, "shown_second": verdict.shown_second}
        for verdict in verdicts
    ]
    write_jsonl(draft.path / VERDICTS, lines)
    scores = np.array([verdict.score for verdict in verdicts])
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    low, high = bootstrap(scores, np.ones(len(scores)), seed=0)
    draft.publish(
        Judgement(
            path=draft.final,
            fingerprint=fingerprint.of_value(lines),
            judge=request.judge,
            prompts=len(verdicts),
            wins=wins,
            ties=len(verdicts) - wins - losses,
            losses=losses,
            win_rate=float(scores.mean()),
            low=low,
            high=high,
            p=mcnemar(wins, losses),
            consistent=sum(verdict.shown_first == verdict.shown_second for verdict in verdicts) / len(verdicts),
        )
    )


def judge_pairs(
    model: Model | str, first: Sequence[SampleResult], second: Sequence[SampleResult], directory: Path
) -> list[JudgeVerdict]:
    """A verdict on every prompt that both models responded to, on the responses of the first epoch.

    Equal responses are a tie without the judge. ``directory`` gets the judge's log. Raises EvaluationError as
    :func:`run` does.
    """
    first_results, second_results = (
        {result.id: result for result in results if result.error is None and result.epoch == 1}
        for results in (first, second)
    )
    pairs = [(result, second_results[name]) for name, result in first_results.items() if name in second_results]
    if not pairs:
        rule = "A judge compares responses to the same prompt."
        raise EvaluationError("The two models have no prompt in common.", rule, "Evaluate both on the same task.")
    differing = [pair for pair in pairs if pair[0].response != pair[1].response]
    scores = {result.id: (0.5, 0.5) for result, other in pairs if result.response == other.response}
    scores |= ask_judge(model, differing, directory) if differing else {}
    return [JudgeVerdict(result.id, *scores[result.id]) for result, _ in pairs if result.id in scores]


def ask_judge(
    model: Model | str, pairs: Sequence[tuple[SampleResult, SampleResult]], directory: Path
) -> dict[str, tuple[float, float]]:
    """Scores of the first responses by prompt id, shown first and shown second; prompts without both are left out."""
    samples = [sample for pair in pairs for sample in judge_samples(*pair)]
    # inspect-ai caches an API's responses, so that interrupted judging does not pay for them again.
    task = Task(
        dataset=MemoryDataset(samples, name=NAME),
        solver=generate(cache=True),
        scorer=preference(len(samples)),
        config=API_LIMITS,
    )
    log = run_inspect_task(model, TaskRun(task, NAME, directory))
    scores = {
        str(sample.id): next(iter(sample.scores.values())).as_float()
        for sample in log.samples or []
        if sample.scores and sample.error is None
    }
    orders = {result.id: (f"{result.id}/first", f"{result.id}/second") for result, _ in pairs}
    return {
        name: (scores[first], scores[second])
        for name, (first, second) in orders.items()
        if first in scores and second in scores
    }


def judge_samples(first: SampleResult, second: SampleResult) -> Iterator[Sample]:
    """The two samples for the judge: the first model's response shown first, then second."""
    for order, (shown_first, shown_second) in {"first": (first, second), "second": (second, first)}.items():
        text = TEMPLATE.format(prompt=first.prompt, first=shown_first.response, second=shown_second.response)
        yield Sample(id=f"{first.id}/{order}", input=text, metadata={"order": order})


@scorer(metrics=[])
def preference(count: int) -> Scorer:
    """Scorer with the first model's score by the judge's verdict. ``count``: number of verdicts, for the progress."""
    progress = Progress("judging", count, "verdicts")

    async def read_verdict(state: TaskState, target: Target) -> Score:
        progress.advance()
        verdicts = VERDICT.findall(state.output.completion)
        if not verdicts:
            raise ValueError(f"the judge gave no verdict: {state.output.completion[-200:]!r}")
        verdict = verdicts[-1].upper()
        value = VERDICT_SCORES[verdict]
        return Score(value=value if state.metadata["order"] == "first" else 1 - value, answer=verdict)

    return read_verdict
