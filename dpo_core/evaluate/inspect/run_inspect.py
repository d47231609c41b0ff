"""Task runner on inspect-ai: a task finishes with every sample in its log, or raises."""

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
from dpo_core.evaluate.inspect.inspect_errors import unwrap_errors
from dpo_core.evaluate.inspect.inspect_plugin import dpo
from dpo_core.evaluate.inspect.provider import CONNECTIONS
from dpo_core.evaluate.task_names import label
from dpo_core.inference.generator import ResponseGenerator, Sampling

MAX_FAILED_SHARE = 0.05
NO_SAMPLES_RULE = "An evaluation needs at least one sample."
DEBUG_HINT = "--debug prints the traceback."


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task to run: the task or its inspect-ai name, at most ``limit`` samples, and the directory of its log,
    ``<name>.eval``."""

    task: Task | str
    name: str
    log_dir: Path
    limit: int | None = None


def to_inspect_model(generator: ResponseGenerator, name: str, sampling: Sampling) -> Model:
    """A loaded model as an inspect-ai model; a task's own generation settings override ``sampling``."""
    # inspect-ai types a decorated provider as a class, but it is a function with the class's arguments.
    provider: Callable[..., ModelAPI] = dpo
    config = GenerateConfig(
        max_connections=CONNECTIONS,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )
    return Model(provider(name, generator=generator), config)


def run_inspect_task(model: Model | str, task_run: TaskRun) -> EvalLog:
    """Run a task on a model, and leave its log in ``log_dir``.

    Raises EvaluationError unless the task finished with every sample in the log.
    """
    try:
        with unwrap_errors():
            logs = eval(
                task_run.task,
                model=model,
                limit=task_run.limit,
                continue_on_fail=True,
                # inspect-ai stops at this share of failed samples; MAX_FAILED_SHARE itself is still allowed.
                fail_on_error=math.nextafter(MAX_FAILED_SHARE, 1),
                display="none",
                log_dir=str(task_run.log_dir),
                # inspect-ai's live view doubles the cost of its bookkeeping.
                log_realtime=False,
                score_display=False,
                ctl_server=False,
            )
    except DPOError:
        raise
    except Exception as error:
        raise start_error(task_run, error) from error
    log = check_log(logs)
    Path(log.location).rename(task_run.log_dir / f"{label(task_run.name)}.eval")
    return log


def start_error(task_run: TaskRun, error: Exception) -> EvaluationError:
    """The error for a task or model that inspect-ai could not start."""
    # inspect-ai's message has several lines, with terminal markup.
    words = re.sub(r"\[/?[a-z ]+\]", "", str(getattr(error, "message", error))).split()
    message = " ".join(words) or type(error).__name__
    missing = error.name if isinstance(error, ModuleNotFoundError) else missing_module(task_run.name)
    remedy = f"Install what it needs: pip install {missing.partition('.')[0]}" if missing else DEBUG_HINT
    return EvaluationError(f"{task_run.name} could not be started: {message.rstrip('.')}.", "", remedy)


def missing_module(name: str) -> str | None:
    """The module that a task package fails to import: inspect-ai then finds none of its tasks, without a reason."""
    for entry in entry_points(group="inspect_ai", name=name.partition("/")[0]):
        try:
            entry.load()
        except ModuleNotFoundError as error:
            return error.name
    return None


def check_log(logs: Sequence[EvalLog], expected: int | None = None) -> EvalLog:
    """The log of a finished evaluation. ``expected``: its number of samples, by default the log's own count.

    Raises EvaluationError for an evaluation that was interrupted, failed, lost samples or had none.
    """
    rule = f"At most {MAX_FAILED_SHARE:.0%} of the samples may fail, and none may be missing."
    if not logs or logs[0].status == "cancelled":
        raise EvaluationError("The evaluation was interrupted.", "It has no result.", "Run it again.")
    log = logs[0]
    samples = log.samples or []
    if expected is None:
        expected = log.results.total_samples if log.results else len(samples)
    failed = [sample.error.message for sample in samples if sample.error]
    if log.status != "success" or len(failed) > MAX_FAILED_SHARE * expected:
        cause = failed[0] if failed else (log.error.message if log.error else log.status)
        raise EvaluationError(f"{len(failed)} of {expected} samples failed: {cause}.", rule, DEBUG_HINT)
    if len(samples) != expected:
        raise EvaluationError(f"{len(samples)} of {expected} samples are in the log.", rule, "Run it again.")
    if not samples:
        raise EvaluationError("The task has no samples.", NO_SAMPLES_RULE, "Check its dataset and limit.")
    return log


def task_version(log: EvalLog) -> str:
    """The task's version, with its package's in parentheses."""
    package = log.eval.packages.get((log.eval.task_registry_name or "").partition("/")[0])
    return f"{log.eval.task_version}" + (f" ({package})" if package else "")


def failed_samples(log: EvalLog) -> int:
    """Number of samples whose generation or scoring failed."""
    return sum(sample.error is not None for sample in log.samples or [])


def log_metrics(log: EvalLog) -> dict[str, float]:
    """The log's metrics by name, prefixed with the scorer's name when there are several scorers."""
    scores = log.results.scores if log.results else []
    return {
        name if len(scores) == 1 else f"{score.name}/{name}": float(metric.value)
        for score in scores
        for name, metric in score.metrics.items()
    }
