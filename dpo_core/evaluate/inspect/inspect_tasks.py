"""The stage that builds tasks without asking them, to see that they can be and what they are made of."""

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
from dpo_core.evaluate.inspect.run_inspect import TaskRun, refused
from dpo_core.records import TaskContents
from dpo_core.stages.evaluation.inspect_tasks import InspectTasksRequest
from dpo_core.system.progress import ticking


def run(request: InspectTasksRequest, draft: Draft) -> None:
    """Publish the TaskContents of these tasks.

    Raises EvaluationError for one that cannot be built or has no samples.
    """
    # Some tasks ask for the model that is evaluated while they are built.
    init_active_model(get_model("none"), GenerateConfig())
    if request.judge:
        check_judge(request.judge)
    digests = {name: content(name) for name in request.tasks}
    draft.publish(TaskContents(path=draft.final, digests=digests))


def check_judge(name: str) -> None:
    """Raises EvaluationError for a judge whose package or key is missing."""
    try:
        get_model(name)
    except Exception as error:
        raise refused(TaskRun("judge", f"The judge {name}", Path()), error) from error


def content(name: str) -> str:
    """The digest of a task's samples and version, and of the modules beside its file that it brought in."""
    try:
        with ticking(f"building the task {name}"), redirect_stdout(sys.stderr):  # a task's file may print
            [task] = load_tasks([name])
    except Exception as error:
        raise refused(TaskRun(name, name, Path()), error) from error
    if not len(task.dataset):
        raise EvaluationError(f"{name} has no samples.", "A share of nothing is none.", "Check its dataset.")
    return fingerprint.of_value([samples(task), str(task.version), task.epochs, neighbours(name)])


def samples(task: Task) -> list[Any]:
    """A task's samples as values; the messages of an input are given new ids each time, which are left out."""
    told = to_jsonable_python([sample.model_dump() for sample in task.dataset], fallback=str)
    for sample in told:
        if isinstance(sample["input"], list):
            sample["input"] = [{key: value for key, value in one.items() if key != "id"} for one in sample["input"]]
    values: list[Any] = told
    return values


def neighbours(name: str) -> list[str]:
    """Digests of the modules that were loaded from where a task's file is, or below."""
    path = Path(name.partition("@")[0])
    if path.suffix != ".py":
        return []
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return sorted(fingerprint.of_file(Path(file)) for file in files if Path(file).is_relative_to(path.parent))
