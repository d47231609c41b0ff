"""Task inspection: a stage that builds inspect-ai tasks without running them, and digests their contents."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai._eval.loader import load_tasks
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.model._model import init_active_model
from pydantic_core import to_jsonable_python

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.inspect.run_inspect import NO_SAMPLES_RULE, TaskRun, start_error
from dpo_core.records import TaskContents
from dpo_core.stages.evaluation.inspect_tasks import InspectTasksRequest
from dpo_core.system.progress import ticking


def run(request: InspectTasksRequest, draft: Draft) -> None:
    """Build the tasks; publish TaskContents.

    Raises EvaluationError for a task that cannot be built or has no samples, and for a judge that is unavailable.
    """
    # Some tasks request the evaluated model while they are built.
    init_active_model(get_model("none"), GenerateConfig())
    if request.judge:
        check_judge(request.judge)
    digests = {name: task_digest(name) for name in request.tasks}
    draft.publish(TaskContents(path=draft.final, digests=digests))


def check_judge(name: str) -> None:
    """Raises EvaluationError for a judge whose package or key is missing."""
    try:
        get_model(name)
    except Exception as error:
        raise start_error(TaskRun("judge", f"The judge {name}", Path()), error) from error


def task_digest(name: str) -> str:
    """Digest of a task's samples, version and epochs, and of the modules that it imported from its file's directory.

    Raises EvaluationError when the task cannot be built or has no samples.
    """
    try:
        with ticking(f"building the task {name}"), redirect_stdout(sys.stderr):  # a task's file may print
            [task] = load_tasks([name])
    except Exception as error:
        raise start_error(TaskRun(name, name, Path()), error) from error
    if not len(task.dataset):
        raise EvaluationError(f"{name} has no samples.", NO_SAMPLES_RULE, "Check its dataset.")
    return fingerprint.of_value([sample_values(task), str(task.version), task.epochs, sibling_digests(name)])


def sample_values(task: Task) -> list[Any]:
    """A task's samples as JSON values, without the message ids, which inspect-ai draws anew each time."""
    samples: list[Any] = to_jsonable_python([sample.model_dump() for sample in task.dataset], fallback=str)
    for sample in samples:
        if isinstance(sample["input"], list):
            sample["input"] = [
                {key: value for key, value in message.items() if key != "id"} for message in sample["input"]
            ]
    return samples


def sibling_digests(name: str) -> list[str]:
    """Digests of the modules loaded from the directory of a task's file, or below it."""
    path = Path(name.partition("@")[0])
    if path.suffix != ".py":
        return []
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return sorted(fingerprint.of_file(Path(file)) for file in files if Path(file).is_relative_to(path.parent))
