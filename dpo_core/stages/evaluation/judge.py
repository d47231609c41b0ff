"""Stage ``judge``: preferences of a judge between two models' responses."""

from dpo_core.records import Judgement, Record, TaskResult
from dpo_core.stages.stage import Stage, StageCall


class JudgeRequest(Record):
    """Let ``judge``, a model of inspect-ai's, prefer one of two models' responses to each prompt of a task."""

    judge: str
    first: TaskResult
    second: TaskResult


STAGE = Stage("judge", 1, JudgeRequest, Judgement, "dpo_core.evaluate.judge")


def call(judge: str, first: TaskResult, second: TaskResult) -> StageCall[Judgement]:
    """The judge by inspect-ai's name (``provider/model``)."""
    inputs = {"judge": judge, "answers": [first.fingerprint, second.fingerprint]}
    return StageCall(STAGE, inputs, JudgeRequest(judge=judge, first=first, second=second))
