"""The stage in which a judge, any model of inspect-ai's, prefers one of two answers to each prompt.

Every pair is shown in both orders, since judges favour a place (Zheng et al., arXiv 2306.05685): what a judge says of
one order only counts half.
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
from dpo_core.evaluate.run_task import read_answers, write_lines
from dpo_core.evaluate.sample_results import SampleResult
from dpo_core.records import Judgement
from dpo_core.stages.evaluation.judge import JudgeRequest
from dpo_core.system.progress import Progress

NAME, VERDICTS = "judge", "verdicts.jsonl"
# An API that does not answer is an error, not an evaluation without an end.
PATIENCE = GenerateConfig(max_retries=5, timeout=300)
WORTH = {"A": 1.0, "B": 0.0, "C": 0.5}
SAID = re.compile(r"verdict\W*([ABC])\b", re.IGNORECASE)
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
    """What the first answer was worth: 1 preferred, ½ even, 0 not; by the order in which it was shown."""

    id: str
    shown_first: float
    shown_second: float

    @property
    def worth(self) -> float:
        """Over both orders."""
        return (self.shown_first + self.shown_second) / 2


def run(request: JudgeRequest, draft: Draft) -> None:
    """Ask the judge; publish a Judgement.

    Raises EvaluationError when there is nothing to judge, the judge cannot be asked, or too few of its verdicts can
    be read.
    """
    verdicts = judge(request.judge, read_answers(request.first), read_answers(request.second), draft.path)
    lines = [{"id": one.id, "shown_first": one.shown_first, "shown_second": one.shown_second} for one in verdicts]
    write_lines(draft.path / VERDICTS, lines)
    worth = np.array([one.worth for one in verdicts])
    wins, losses = int((worth > 0.5).sum()), int((worth < 0.5).sum())
    low, high = bootstrap(worth, np.ones(len(worth)), seed=0)
    draft.publish(
        Judgement(
            path=draft.final,
            fingerprint=fingerprint.of_value(lines),
            judge=request.judge,
            prompts=len(verdicts),
            wins=wins,
            ties=len(verdicts) - wins - losses,
            losses=losses,
            win_rate=float(worth.mean()),
            low=low,
            high=high,
            p=mcnemar(wins, losses),
            consistent=sum(one.shown_first == one.shown_second for one in verdicts) / len(verdicts),
        )
    )


def judge(
    model: Model | str, first: Sequence[SampleResult], second: Sequence[SampleResult], place: Path
) -> list[JudgeVerdict]:
    """A verdict on every prompt that both answered, as they did the first time; the same answer is even, and not asked
    about.

    Raises EvaluationError as :func:`run` does.
    """
    ours, others = ({one.id: one for one in told if one.error is None and one.epoch == 1} for told in (first, second))
    pairs = [(one, others[name]) for name, one in ours.items() if name in others]
    if not pairs:
        raise EvaluationError("The two models answered no prompt in common.", "A judge compares answers.", "")
    differing = [(one, other) for one, other in pairs if one.response != other.response]
    known = {one.id: (0.5, 0.5) for one, other in pairs if one.response == other.response}
    known |= ask(model, differing, place) if differing else {}
    return [JudgeVerdict(one.id, *known[one.id]) for one, _ in pairs if one.id in known]


def ask(
    model: Model | str, pairs: Sequence[tuple[SampleResult, SampleResult]], place: Path
) -> dict[str, tuple[float, float]]:
    """What the first answers are worth, shown first and shown second; a prompt without both verdicts is left out."""
    samples = [sample for pair in pairs for sample in both_orders(*pair)]
    # What an API has said is kept by inspect-ai, and not paid for again when the judging is cut off.
    task = Task(
        dataset=MemoryDataset(samples, name=NAME),
        solver=generate(cache=True),
        scorer=preference(len(samples)),
        config=PATIENCE,
    )
    log = run_inspect_task(model, TaskRun(task, NAME, place))
    worth = {
        str(sample.id): next(iter(sample.scores.values())).as_float()
        for sample in log.samples or []
        if sample.scores and sample.error is None
    }
    orders = {one.id: (f"{one.id}/first", f"{one.id}/second") for one, _ in pairs}
    return {
        name: (worth[first], worth[second])
        for name, (first, second) in orders.items()
        if first in worth and second in worth
    }


def both_orders(one: SampleResult, other: SampleResult) -> Iterator[Sample]:
    """The question to the judge, the first model's answer shown first and then second."""
    for order, (first, second) in {"first": (one, other), "second": (other, one)}.items():
        text = TEMPLATE.format(prompt=one.prompt, first=first.response, second=second.response)
        yield Sample(id=f"{one.id}/{order}", input=text, metadata={"order": order})


@scorer(metrics=[])
def preference(count: int) -> Scorer:
    """What the first model's answer is worth by the judge's verdict; ``count`` verdicts are to come."""
    progress = Progress("judging", count, "verdicts")

    async def read(state: TaskState, target: Target) -> Score:
        progress.advance()
        said = SAID.findall(state.output.completion)
        if not said:
            raise ValueError(f"the judge gave no verdict: {state.output.completion[-200:]!r}")
        worth = WORTH[said[-1].upper()]
        return Score(value=worth if state.metadata["order"] == "first" else 1 - worth, answer=said[-1].upper())

    return read
