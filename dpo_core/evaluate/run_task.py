"""The stage that asks one model one task, and keeps every answer with its scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft, Store
from dpo_core.config.recipe import EvaluateSettings
from dpo_core.evaluate.ifeval.ifeval_checkers import sentences_from
from dpo_core.evaluate.ifeval.ifeval_task import ifeval
from dpo_core.evaluate.inspect.inspect_errors import told_to_us
from dpo_core.evaluate.inspect.run_inspect import TaskRun, as_model, failures, measures, run_inspect_task, version
from dpo_core.evaluate.sample_results import SampleResult, judged, shares, to_outcome, to_sampled
from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.inference.generator import ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.inference.response_cache import ResponseCache
from dpo_core.inference.select_engine import configured_engine
from dpo_core.records import ModelSource, TaskResult
from dpo_core.stages.evaluation.answer import AnswerRequest, KeyedAnswers

ANSWERS, OUTCOMES = "answers.jsonl", "outcomes.jsonl"


def run(request: AnswerRequest, draft: Draft) -> None:
    """Open the model, ask and judge; publish a TaskResult. Raises as :func:`ask` does."""
    sentences_from(request.evaluate.nltk_data)
    how = to_how(request.evaluate, request.precision, request.model)
    ask(open_generator(request.model.path, how, request.renderer_name, request.model.name), request, draft)


def ask(answerer: ResponseGenerator, request: AnswerRequest, draft: Draft) -> None:
    """Ask and judge; publish a TaskResult. What was answered before an interruption is not asked again.

    Raises EvaluationError when the task did not run to its end, had no samples, or too many of them failed.
    """
    settings = request.evaluate
    model = as_model(
        replace(answerer, cache=ResponseCache(unfinished(draft))), request.model.name, to_sampling(settings)
    )
    with told_to_us():
        task = ifeval(str(request.prompts.path)) if request.prompts else request.task
    log = run_inspect_task(
        model, TaskRun(task, request.task, draft.path, None if request.task == IFEVAL else settings.task_limit)
    )
    metrics, answers = measures(log), [to_sampled(sample) for sample in log.samples or []]
    if request.task == IFEVAL:
        outcomes = [to_outcome(sample) for sample in log.samples or []]
        metrics, answers = metrics | shares(outcomes), [judged(outcome) for outcome in outcomes]
        write_lines(draft.path / OUTCOMES, [outcome.model_dump() for outcome in outcomes])
    lines = [answer.model_dump() for answer in answers]
    write_lines(draft.path / ANSWERS, lines)
    draft.publish(
        TaskResult(
            path=draft.final,
            # Without inspect's log, which names times and places.
            fingerprint=fingerprint.of_value([metrics, lines]),
            task=request.task,
            task_version=version(log),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            settings=drawn(settings, request.renderer_name, request.precision) | {"engine": answerer.engine.name},
            samples=len(answers),
            failed=failures(log),
            metrics=metrics,
        )
    )
    unfinished(draft).unlink(missing_ok=True)


def answered(store: Store, wanted: KeyedAnswers, answerer: Callable[[], ResponseGenerator]) -> TaskResult:
    """Answers to a task: found, whoever asked before, or asked for now and kept."""
    found = store.find("answer", wanted.key, TaskResult)
    if found is None:
        with store.write("answer", wanted.key) as draft:
            if not draft.there:
                ask(answerer(), wanted.request, draft)
        found = store.find("answer", wanted.key, TaskResult)
    if found is None:
        raise RuntimeError("the answers were kept and are not there")
    return found


def unfinished(draft: Draft) -> Path:
    """Where a stage keeps the answers that it has while it is not done; a later attempt finds them there."""
    return draft.final.with_name(f".{draft.final.name}.answers.jsonl")


def to_sampling(settings: EvaluateSettings) -> Sampling:
    """How answers are drawn, as the recipe says."""
    return Sampling(settings.max_new_tokens, settings.eval_temperature, settings.eval_seed)


def to_how(settings: EvaluateSettings, precision: str, source: ModelSource) -> EngineConfig:
    """How the recipe has a model generate."""
    size = None if settings.eval_batch_size == "auto" else settings.eval_batch_size
    return EngineConfig(precision, configured_engine(settings), size, source.trust_remote_code)


def drawn(settings: EvaluateSettings, renderer_name: str, precision: str) -> dict[str, str | float | None]:
    """How answers were drawn, for a record."""
    names = ("max_new_tokens", "eval_temperature", "eval_seed", "ifeval_limit", "task_limit")
    return {name: getattr(settings, name) for name in names} | {
        "renderer_name": renderer_name,
        "precision": precision,
    }


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """JSON, an object a line."""
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def read_answers(result: TaskResult) -> list[SampleResult]:
    """Every sample of a result."""
    return [SampleResult.model_validate_json(line) for line in (result.path / ANSWERS).read_text().splitlines()]
