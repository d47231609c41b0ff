"""Stage that runs one task on one model, and stores every response with its scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft, Store
from dpo_core.config.recipe import EvaluateSettings
from dpo_core.evaluate.ifeval.ifeval_checkers import set_nltk_data
from dpo_core.evaluate.ifeval.ifeval_task import ifeval
from dpo_core.evaluate.inspect.inspect_errors import unwrap_errors
from dpo_core.evaluate.inspect.run_inspect import (
    TaskRun,
    failed_samples,
    log_metrics,
    run_inspect_task,
    task_version,
    to_inspect_model,
)
from dpo_core.evaluate.sample_results import (
    SampleResult,
    prompt_to_sample_result,
    response_metrics,
    to_prompt_result,
    to_sample_result,
)
from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.inference.generator import ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.inference.response_cache import ResponseCache
from dpo_core.inference.select_engine import configured_engine
from dpo_core.records import ModelSource, TaskResult
from dpo_core.stages.evaluation.answer import AnswerRequest, KeyedAnswers

ANSWERS, OUTCOMES = "answers.jsonl", "outcomes.jsonl"


def run(request: AnswerRequest, draft: Draft) -> None:
    """Load the model, generate and score its responses to the task, and publish a TaskResult.

    Raises EvaluationError as :func:`generate_and_score` does.
    """
    set_nltk_data(request.evaluate.nltk_data)
    config = to_engine_config(request.evaluate, request.precision, request.model)
    generator = open_generator(request.model.path, config, request.renderer_name, request.model.name)
    generate_and_score(generator, request, draft)


def generate_and_score(generator: ResponseGenerator, request: AnswerRequest, draft: Draft) -> None:
    """Generate and score a response to every sample, and publish a TaskResult; continues an interrupted attempt.

    Raises EvaluationError when the task did not finish, had no samples, or too many of them failed.
    """
    settings = request.evaluate
    model = to_inspect_model(
        replace(generator, cache=ResponseCache(unfinished_responses(draft))), request.model.name, to_sampling(settings)
    )
    with unwrap_errors():
        task = ifeval(str(request.prompts.path)) if request.prompts else request.task
    log = run_inspect_task(
        model, TaskRun(task, request.task, draft.path, None if request.task == IFEVAL else settings.task_limit)
    )
    metrics, results = log_metrics(log), [to_sample_result(sample) for sample in log.samples or []]
    if request.task == IFEVAL:
        outcomes = [to_prompt_result(sample) for sample in log.samples or []]
        metrics |= response_metrics(outcomes)
        results = [prompt_to_sample_result(outcome) for outcome in outcomes]
        write_jsonl(draft.path / OUTCOMES, [outcome.model_dump() for outcome in outcomes])
    lines = [result.model_dump() for result in results]
    write_jsonl(draft.path / ANSWERS, lines)
    draft.publish(
        TaskResult(
            path=draft.final,
            # Without inspect-ai's log, which holds times and paths.
            fingerprint=fingerprint.of_value([metrics, lines]),
            task=request.task,
            task_version=task_version(log),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            settings=generation_settings(settings, request.renderer_name, request.precision)
            | {"engine": generator.engine.name},
            samples=len(results),
            failed=failed_samples(log),
            metrics=metrics,
        )
    )
    unfinished_responses(draft).unlink(missing_ok=True)


def find_or_generate(store: Store, keyed: KeyedAnswers, generator: Callable[[], ResponseGenerator]) -> TaskResult:
    """The result of a task, from the store or generated now and stored."""
    result = store.find("answer", keyed.key, TaskResult)
    if result is None:
        with store.write("answer", keyed.key) as draft:
            if not draft.there:
                generate_and_score(generator(), keyed.request, draft)
        result = store.find("answer", keyed.key, TaskResult)
    if result is None:
        raise RuntimeError(f"the result {keyed.key} of stage answer was stored but is missing")
    return result


def unfinished_responses(draft: Draft) -> Path:
    """Path of the response cache of an unfinished stage, from which a later attempt continues."""
    return draft.final.with_name(f".{draft.final.name}.answers.jsonl")


def to_sampling(settings: EvaluateSettings) -> Sampling:
    """The recipe's sampling settings."""
    return Sampling(settings.max_new_tokens, settings.eval_temperature, settings.eval_seed)


def to_engine_config(settings: EvaluateSettings, precision: str, source: ModelSource) -> EngineConfig:
    """The recipe's engine settings for a model."""
    size = None if settings.eval_batch_size == "auto" else settings.eval_batch_size
    return EngineConfig(precision, configured_engine(settings), size, source.trust_remote_code)


def generation_settings(
    settings: EvaluateSettings, renderer_name: str, precision: str
) -> dict[str, str | float | None]:
    """The settings that determine responses, for a record."""
    names = ("max_new_tokens", "eval_temperature", "eval_seed", "ifeval_limit", "task_limit")
    return {name: getattr(settings, name) for name in names} | {
        "renderer_name": renderer_name,
        "precision": precision,
    }


def write_jsonl(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_sample_results(result: TaskResult) -> list[SampleResult]:
    """The samples of a task's result."""
    return [SampleResult.model_validate_json(line) for line in (result.path / ANSWERS).read_text().splitlines()]
