"""Stage ``answer``: one model's scored responses to one task."""

from pathlib import Path

from dpo_core.config.recipe import EvaluateSettings
from dpo_core.records import ModelSource, PromptSet, Record, TaskResult
from dpo_core.stages.stage import Stage, StageCall


class AnswerRequest(Record):
    """Run one task on one model: its prompts where the task is ours, else at most ``evaluate.task_limit`` samples."""

    model: ModelSource
    renderer_name: str
    task: str
    prompts: PromptSet | None
    evaluate: EvaluateSettings
    precision: str


class KeyedAnswers(Record):
    """A task result's cache key, and the request that makes it."""

    key: str
    request: AnswerRequest


STAGE = Stage(
    "answer",
    3,
    AnswerRequest,
    TaskResult,
    "dpo_core.evaluate.run_task",
    uses_gpu=True,
    out_of_memory_remedy="Make memory free, set a smaller eval_batch_size or max_new_tokens",
)


def call(
    request: AnswerRequest, engine: str, renderer: object, task: tuple[object, object, bool], python: Path | None
) -> StageCall[TaskResult]:
    """``task``: what identifies the task, the fingerprint of its prompts or samples, and whether it is IFEval.

    ``engine``, ``renderer``: the engine's name and what identifies the renderer, its code included.
    """
    identity, content, is_ifeval = task
    inputs = {
        "model": request.model.fingerprint,
        "tokenizer": request.model.tokenizer_fingerprint,
        "renderer": renderer,
        "task": identity,
        "content": content,
        "limit": None if is_ifeval else request.evaluate.task_limit,
        "sampling": sampling_in_key(request.evaluate, engine),
        "precision": request.precision,
    }
    return StageCall(STAGE, inputs, request, python)


def sampling_in_key(settings: EvaluateSettings, engine: str) -> list[int | float | str | None]:
    """What responses depend on besides model and prompt; greedy decoding depends on no seed."""
    seed = settings.eval_seed if settings.eval_temperature else None
    return [settings.max_new_tokens, settings.eval_temperature, seed, engine]
