"""Stage ``look``: tasks of inspect-ai, built without a model to see that they can be; its output is not cached."""

from pathlib import Path

from dpo_core.records import Record, TaskContents
from dpo_core.stages.stage import Stage, StageCall


class InspectTasksRequest(Record):
    """Build tasks to digest their samples, and check that the ``judge`` can be reached."""

    tasks: tuple[str, ...]
    judge: str | None = None


STAGE = Stage("look", 1, InspectTasksRequest, TaskContents, "dpo_core.evaluate.inspect.inspect_tasks")


def call(tasks: tuple[str, ...], judge: str | None, python: Path | None) -> StageCall[TaskContents]:
    """Tasks by name, in this interpreter or another."""
    return StageCall(STAGE, {}, InspectTasksRequest(tasks=tasks, judge=judge), python)
