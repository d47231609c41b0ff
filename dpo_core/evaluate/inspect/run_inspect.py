"""Tasks run through inspect-ai: to their end, with every sample in the log, or not at all."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, ModelAPI

from dpo_core.errors import DPOError, EvaluationError
from dpo_core.evaluate.inspect.inspect_errors import told_to_us
from dpo_core.evaluate.inspect.inspect_plugin import dpo
from dpo_core.evaluate.inspect.provider import CONNECTIONS
from dpo_core.evaluate.task_names import label
from dpo_core.inference.generator import ResponseGenerator, Sampling

MOST_FAILED = 0.05


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task (inspect-ai's name of it, or the task itself) with its first ``limit`` samples; ``place`` gets its log,
    ``<name>.eval``."""

    task: Task | str
    name: str
    place: Path
    limit: int | None = None


def as_model(answerer: ResponseGenerator, name: str, sampling: Sampling) -> Model:
    """An open model as inspect-ai's, with settings that a task's own take precedence over."""
    # inspect-ai declares its decorated providers as classes, and makes them functions with the class's arguments.
    provider: Callable[..., ModelAPI] = dpo
    config = GenerateConfig(
        max_connections=CONNECTIONS,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )
    return Model(provider(name, answerer=answerer), config)


def run_inspect_task(model: Model | str, asked: TaskRun) -> EvalLog:
    """Run a task on a model; the log is left in its place.

    Raises EvaluationError unless it ended well with every sample in the log.
    """
    try:
        with told_to_us():
            logs = eval(
                asked.task,
                model=model,
                limit=asked.limit,
                continue_on_fail=True,
                # inspect-ai ends an evaluation that has reached its share; ours is one that may be reached.
                fail_on_error=math.nextafter(MOST_FAILED, 1),
                display="none",
                log_dir=str(asked.place),
                # The live view of a running evaluation costs as much again as the evaluation's own bookkeeping.
                log_realtime=False,
                score_display=False,
                ctl_server=False,
            )
    except DPOError:
        raise
    except Exception as error:
        raise refused(asked, error) from error
    checked = check(logs)
    Path(checked.location).rename(asked.place / f"{label(asked.name)}.eval")
    return checked


def refused(asked: TaskRun, error: Exception) -> EvaluationError:
    """The error for a task or a model that inspect-ai could not begin with."""
    # inspect-ai's own words are several lines, with marks for the terminal.
    words = re.sub(r"\[/?[a-z ]+\]", "", str(getattr(error, "message", error))).split()
    told = " ".join(words) or type(error).__name__
    missing = error.name if isinstance(error, ModuleNotFoundError) else missing_module(asked.name)
    remedy = f"Install what it needs: pip install {missing.partition('.')[0]}" if missing else "--debug shows where."
    return EvaluationError(f"{asked.name} could not be started: {told.rstrip('.')}.", "", remedy)


def missing_module(name: str) -> str | None:
    """What a package of tasks imports and does not find: inspect-ai then knows no task of its, and does not say why."""
    for entry in entry_points(group="inspect_ai", name=name.partition("/")[0]):
        try:
            entry.load()
        except ModuleNotFoundError as error:
            return error.name
    return None


def check(logs: Sequence[EvalLog], expected: int | None = None) -> EvalLog:
    """The log of an evaluation that ran to its end; ``expected`` samples, by default as many as it says it had.

    Raises EvaluationError for one that was interrupted, failed, lost samples or had none.
    """
    rule = f"At most {MOST_FAILED:.0%} of the prompts may fail, and none may be missing."
    if not logs or logs[0].status == "cancelled":
        raise EvaluationError("The evaluation was interrupted.", "It runs to its end or not at all.", "Run it again.")
    log = logs[0]
    samples = log.samples or []
    if expected is None:
        expected = log.results.total_samples if log.results else len(samples)
    failed = [sample.error.message for sample in samples if sample.error]
    if log.status != "success" or len(failed) > MOST_FAILED * expected:
        cause = failed[0] if failed else (log.error.message if log.error else log.status)
        raise EvaluationError(f"{len(failed)} of {expected} prompts failed: {cause}.", rule, "--debug shows where.")
    if len(samples) != expected:
        raise EvaluationError(f"{len(samples)} of {expected} prompts are in the log.", rule, "Run it again.")
    if not samples:
        raise EvaluationError("The task has no samples.", "A share of nothing is none.", "Check its dataset and limit.")
    return log


def version(log: EvalLog) -> str:
    """The version of the task, and of the package that it comes from."""
    package = log.eval.packages.get((log.eval.task_registry_name or "").partition("/")[0])
    return f"{log.eval.task_version}" + (f" ({package})" if package else "")


def failures(log: EvalLog) -> int:
    """How many samples could not be asked or judged."""
    return sum(sample.error is not None for sample in log.samples or [])


def measures(log: EvalLog) -> dict[str, float]:
    """The log's metrics by name, each after its scorer's where there are several."""
    scores = log.results.scores if log.results else []
    return {
        name if len(scores) == 1 else f"{score.name}/{name}": float(metric.value)
        for score in scores
        for name, metric in score.metrics.items()
    }
