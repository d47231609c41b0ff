"""IFEval as a task of inspect-ai, scored by the official checkers and measured as ``inspect_evals/ifeval`` measures."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import cast

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState, generate
from pydantic import ValidationError

from dpo_core.errors import EvaluationError
from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, FollowedInstructions, IFEvalPrompt, score
from dpo_core.evaluate.ifeval.ifeval_prompts import check, missing_data, read
from dpo_core.evaluate.inspect.inspect_errors import told_to_inspect
from dpo_core.evaluate.task_names import IFEVAL, IFEVAL_VERSION


@task
def ifeval(prompts: str) -> Task:
    """The prompts of a JSONL file in IFEval's schema.

    By hand: ``inspect eval ifeval -T prompts=<file> --model dpo/<directory>``. Raises Unusable (DataError or
    EvaluationError inside), before anything is generated, for a file that cannot be scored here.
    """
    with told_to_inspect():
        samples = [to_sample(row) for row in scorable(Path(prompts))]
    return Task(
        dataset=MemoryDataset(samples, name=IFEVAL),
        solver=generate(),
        scorer=instruction_following(),
        version=IFEVAL_VERSION,
    )


def scorable(path: Path) -> Iterator[IFEvalPrompt]:
    """The rows of a file; of each kind of instruction the first is tried, since some need data that may be missing."""
    tried: set[str] = set()
    for where, row in read(path):
        if not tried.issuperset(row.instruction_id_list):
            check(row, where)
            tried.update(row.instruction_id_list)
        yield row


def to_sample(row: IFEvalPrompt) -> Sample:
    """A prompt as a sample, its target for the log's reader. The row stays one value: a saved log turns integer keys
    into strings."""
    asked = ", ".join(row.instruction_id_list)
    return Sample(id=row.key, input=row.prompt, target=asked, metadata={"row": ROW.dump_python(row)})


@metric
def accuracies() -> Metric:
    """Shares of prompts and of instructions followed, their mean ``final_acc``, and all their standard errors.

    Instructions of one prompt are not independent: errors are clustered by prompt. The names and the numbers are those
    of ``if_metric`` in inspect_evals.
    """

    def measure(scores: list[SampleScore]) -> Value:
        rows = [cast(Mapping[str, int], score.score.value) for score in scores]
        if not rows:  # inspect-ai tries metrics on nothing, before there is anything
            return {}
        ones = [1.0] * len(rows)
        sizes = [float(row["num_instructions"]) for row in rows]
        per_prompt = sum(sizes) / len(sizes)
        prompts = {kind: [float(row[f"prompt_level_{kind}"]) for row in rows] for kind in ("strict", "loose")}
        followed = {kind: [float(row[f"inst_level_{kind}"]) for row in rows] for kind in ("strict", "loose")}
        # The mean of the four is again a share of instructions, a prompt's own verdict counted as per_prompt of them.
        quarters = zip(*followed.values(), *prompts.values(), strict=True)
        final = [(strict + loose + per_prompt * (one + other)) / 4 for strict, loose, one, other in quarters]
        return {
            **named("prompt_strict", prompts["strict"], ones),
            **named("prompt_loose", prompts["loose"], ones),
            **named("inst_strict", followed["strict"], sizes),
            **named("inst_loose", followed["loose"], sizes),
            **named("final", final, sizes),
        }

    return measure


def named(name: str, values: Sequence[float], sizes: Sequence[float]) -> dict[str, float]:
    """A share Σv / Σn over G clusters of ``sizes`` n, with its standard error √(G/(G−1) Σ(v − share·n)²) / Σn.

    With clusters of one it is the standard error of a mean.
    """
    count, total = len(values), sum(sizes)
    share = sum(values) / total
    squares = sum((value - share * size) ** 2 for value, size in zip(values, sizes, strict=True))
    stderr = sqrt(squares * count / (count - 1)) / total if count > 1 else 0.0
    return {f"{name}_acc": share, f"{name}_stderr": stderr}


@scorer(metrics=[accuracies()])
def instruction_following() -> Scorer:
    """Strict and loose verdicts on every instruction, counted for :func:`accuracies`."""

    async def judge(state: TaskState, target: Target) -> Score:
        response = state.output.completion
        with told_to_inspect():
            row = row_of(state)
            verdict = verdict_on(row, response)
        told = {"strict": list(verdict.strict), "loose": list(verdict.loose)}
        return Score(value=counts(verdict), answer=response, explanation=explain(row, verdict), metadata=told)

    return judge


def verdict_on(row: IFEvalPrompt, response: str) -> FollowedInstructions:
    """A response judged.

    Raises EvaluationError where NLTK's data are missing, as when a log is scored again elsewhere.
    """
    try:
        return score(row, response)
    except LookupError as error:
        raise missing_data(f"Prompt {row.key}", error, None) from None


def row_of(state: TaskState) -> IFEvalPrompt:
    """A sample's row.

    Raises EvaluationError for a log that another task, or another version of this one, has written.
    """
    try:
        return ROW.validate_python(state.metadata["row"])
    except (KeyError, ValidationError):
        found = f"Sample {state.sample_id} has no row of IFEval as version {IFEVAL_VERSION} of the task keeps it."
        rule = "A log is scored by the task, and the version of it, that wrote it."
        raise EvaluationError(found, rule, "Run the evaluation again.") from None


def counts(verdict: FollowedInstructions) -> dict[str, str | int | float | bool | None]:
    """The numbers that the metrics are made of."""
    return {
        "prompt_level_strict": int(all(verdict.strict)),
        "inst_level_strict": sum(verdict.strict),
        "prompt_level_loose": int(all(verdict.loose)),
        "inst_level_loose": sum(verdict.loose),
        "num_instructions": len(verdict.strict),
    }


def explain(row: IFEvalPrompt, verdict: FollowedInstructions) -> str:
    """Every instruction with its strict verdict, for the log's reader."""
    pairs = zip(row.instruction_id_list, verdict.strict, strict=True)
    return ", ".join(f"{name}: {'followed' if followed else 'not followed'}" for name, followed in pairs)
