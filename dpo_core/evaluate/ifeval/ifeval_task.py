"""IFEval task for inspect-ai: the official checkers as a scorer, with the metrics of ``inspect_evals/ifeval``."""

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
from dpo_core.evaluate.ifeval.ifeval_prompts import check_prompt, missing_data_error, read_prompts
from dpo_core.evaluate.inspect.inspect_errors import wrap_errors
from dpo_core.evaluate.task_names import IFEVAL, IFEVAL_VERSION


@task
def ifeval(prompts: str) -> Task:
    """The task with the prompts of a JSONL file in IFEval's schema.

    From the command line: ``inspect eval ifeval -T prompts=<file> --model dpo/<directory>``. Raises
    InspectPrerequisiteError, caused by DataError or EvaluationError, for prompts that cannot be scored here.
    """
    with wrap_errors():
        samples = [to_sample(row) for row in read_scorable(Path(prompts))]
    return Task(
        dataset=MemoryDataset(samples, name=IFEVAL),
        solver=generate(),
        scorer=instruction_following(),
        version=IFEVAL_VERSION,
    )


def read_scorable(path: Path) -> Iterator[IFEvalPrompt]:
    """The rows of a file. The first row of each instruction type is checked, since a checker's data may be missing."""
    checked: set[str] = set()
    for location, row in read_prompts(path):
        if not checked.issuperset(row.instruction_id_list):
            check_prompt(row, location)
            checked.update(row.instruction_id_list)
        yield row


def to_sample(row: IFEvalPrompt) -> Sample:
    """An IFEval row as a sample. The target is for readers of the log: the scorer reads the row in the metadata."""
    # The row stays a single value: a saved log turns integer keys of metadata into strings.
    instructions = ", ".join(row.instruction_id_list)
    return Sample(id=row.key, input=row.prompt, target=instructions, metadata={"row": ROW.dump_python(row)})


@metric
def accuracies() -> Metric:
    """Shares of prompts and of instructions followed, their mean ``final_acc``, and their standard errors.

    Standard errors are clustered by prompt, since instructions of one prompt are not independent. Names and values
    equal those of ``if_metric`` in inspect_evals.
    """

    def measure(scores: list[SampleScore]) -> Value:
        rows = [cast(Mapping[str, int], score.score.value) for score in scores]
        if not rows:  # inspect-ai calls metrics without scores before the first sample
            return {}
        ones = [1.0] * len(rows)
        sizes = [float(row["num_instructions"]) for row in rows]
        per_prompt = sum(sizes) / len(sizes)
        prompts = {kind: [float(row[f"prompt_level_{kind}"]) for row in rows] for kind in ("strict", "loose")}
        followed = {kind: [float(row[f"inst_level_{kind}"]) for row in rows] for kind in ("strict", "loose")}
        # The mean of the four is a share of instructions; a prompt's verdict counts as per_prompt instructions.
        quarters = zip(*followed.values(), *prompts.values(), strict=True)
        final = [
            (strict + loose + per_prompt * (prompt_strict + prompt_loose)) / 4
            for strict, loose, prompt_strict, prompt_loose in quarters
        ]
        return {
            **share_with_error("prompt_strict", prompts["strict"], ones),
            **share_with_error("prompt_loose", prompts["loose"], ones),
            **share_with_error("inst_strict", followed["strict"], sizes),
            **share_with_error("inst_loose", followed["loose"], sizes),
            **share_with_error("final", final, sizes),
        }

    return measure


def share_with_error(name: str, values: Sequence[float], sizes: Sequence[float]) -> dict[str, float]:
    """A share Σv / Σn over G clusters of ``sizes`` n, and its standard error √(G/(G−1) Σ(v − share·n)²) / Σn.

    With clusters of size 1 it is the standard error of a mean.
    """
    count, total = len(values), sum(sizes)
    share = sum(values) / total
    squares = sum((value - share * size) ** 2 for value, size in zip(values, sizes, strict=True))
    stderr = sqrt(squares * count / (count - 1)) / total if count > 1 else 0.0
    return {f"{name}_acc": share, f"{name}_stderr": stderr}


@scorer(metrics=[accuracies()])
def instruction_following() -> Scorer:
    """Scorer with strict and loose verdicts on every instruction, counted for :func:`accuracies`."""

    async def score_sample(state: TaskState, target: Target) -> Score:
        response = state.output.completion
        with wrap_errors():
            row = sample_row(state)
            verdict = score_response(row, response)
        metadata = {"strict": list(verdict.strict), "loose": list(verdict.loose)}
        return Score(
            value=verdict_counts(verdict), answer=response, explanation=explain(row, verdict), metadata=metadata
        )

    return score_sample


def score_response(row: IFEvalPrompt, response: str) -> FollowedInstructions:
    """Strict and loose verdicts on a response.

    Raises EvaluationError when NLTK's data are missing, for example when a log is scored again on another machine.
    """
    try:
        return score(row, response)
    except LookupError as error:
        raise missing_data_error(f"Prompt {row.key}", error, None) from None


def sample_row(state: TaskState) -> IFEvalPrompt:
    """The IFEval row in a sample's metadata.

    Raises EvaluationError for a log written by another task, or by another version of this task.
    """
    try:
        return ROW.validate_python(state.metadata["row"])
    except (KeyError, ValidationError):
        found = f"Sample {state.sample_id} has no IFEval row as version {IFEVAL_VERSION} of the task writes it."
        rule = "A log is scored by the same version of the same task that wrote it."
        raise EvaluationError(found, rule, "Run the evaluation again.") from None


def verdict_counts(verdict: FollowedInstructions) -> dict[str, str | int | float | bool | None]:
    """Counts of followed prompts and instructions, from which :func:`accuracies` computes the metrics."""
    return {
        "prompt_level_strict": int(all(verdict.strict)),
        "inst_level_strict": sum(verdict.strict),
        "prompt_level_loose": int(all(verdict.loose)),
        "inst_level_loose": sum(verdict.loose),
        "num_instructions": len(verdict.strict),
    }


def explain(row: IFEvalPrompt, verdict: FollowedInstructions) -> str:
    """Every instruction with its strict verdict, for readers of the log."""
    pairs = zip(row.instruction_id_list, verdict.strict, strict=True)
    return ", ".join(f"{name}: {'followed' if followed else 'not followed'}" for name, followed in pairs)
