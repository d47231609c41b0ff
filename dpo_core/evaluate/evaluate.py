"""The stage that measures one model: held-out preferences, its answers to tasks, and some of them to look at."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from shutil import copyfile
from typing import Any

from transformers import PreTrainedModel

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft, Store
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.generate import SAMPLES, continued, line
from dpo_core.evaluate.ifeval.ifeval_checkers import sentences_from
from dpo_core.evaluate.run_task import OUTCOMES, answered, drawn, to_how, write_lines
from dpo_core.evaluate.task_names import IFEVAL, label
from dpo_core.inference import select_engine
from dpo_core.inference.generator import ResponseGenerator
from dpo_core.inference.load_engine import engine_of, open_engine, release
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.records import EvalResult, SampleSet, TaskResult
from dpo_core.render.registry import get_renderer
from dpo_core.stages.evaluate import EvaluateRequest
from dpo_core.train.checkpoint import journal
from dpo_core.train.validation import validate, validation_config

REWARDS = "rewards.jsonl"


def run(request: EvaluateRequest, draft: Draft) -> None:
    """Load the model once, measure it and ask it what it has not answered before; publish an EvalResult.

    Raises EvaluationError when a task did not run to its end or too many prompts failed.
    """
    sentences_from(request.evaluate.nltk_data)
    source, train = request.model, request.train
    model = load_model(source.path, trust_remote_code=source.trust_remote_code, dtype=request.dtype)
    settings = validation_config(model, train, request.rendered, request.reference)
    held_out = validate(model, request.rendered, request.reference, settings)

    @cache
    def answerer() -> ResponseGenerator:
        return to_answerer(model, request)

    results = [answered(draft.store, one, answerer) for one in request.answers]
    for result in results:
        bring(result, draft.path)
    asked = any(result.task == IFEVAL for result in results)
    if not asked:
        write_lines(draft.path / OUTCOMES, [])
    write_lines(draft.path / SAMPLES, shown(draft.path, request) if asked else sampled(draft.store, request, answerer))
    rewards = zip(held_out.rewards.chosen, held_out.rewards.rejected, strict=True)
    write_lines(draft.path / REWARDS, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in rewards])
    publish(request, held_out.metrics_with_noise(source.margin_noise), results, draft)


def to_answerer(model: PreTrainedModel, request: EvaluateRequest) -> ResponseGenerator:
    """The model that was measured, with the renderer that made the training data; vLLM reads it anew.

    Raises EvaluationError where another interpreter is to answer: what it said is found, or was lost.
    """
    if request.evaluate.eval_python:
        raise missing_answers()
    source, precision = request.model, request.train.precision
    how = to_how(request.evaluate, precision, source)
    chosen = select_engine.choose(how.engine, model.device.type, precision)
    if chosen == "vllm":
        release(model)
        engine = open_engine(source.path, how).engine
    else:
        engine = engine_of(model, chosen, precision)
    renderer = get_renderer(request.rendered.renderer_name, load_tokenizer(source.path, source.trust_remote_code))
    return ResponseGenerator(engine, renderer, how.batch_size)


def missing_answers() -> EvaluationError:
    """The error for answers that another interpreter gave, and that are gone before they were measured."""
    rule = "With eval_python this process generates none."
    return EvaluationError("Kept answers are damaged or gone.", rule, "Run the same command again.")


def sampled(store: Store, request: EvaluateRequest, answerer: Callable[[], ResponseGenerator]) -> list[dict[str, Any]]:
    """Held-out prompts with answers: those that another interpreter gave, or given now."""
    if request.samples is None:
        return continued(answerer, request.rendered, request.evaluate)
    found = store.find("generate", request.samples, SampleSet)
    if found is None:
        raise missing_answers()
    return journal.read(found.path)


def bring(result: TaskResult, place: Path) -> None:
    """A task's log and outcomes among the evaluation's own files."""
    for path in result.path.iterdir():
        if path.suffix == ".eval" or path.name == OUTCOMES:
            copyfile(path, place / path.name)


def shown(place: Path, request: EvaluateRequest) -> list[dict[str, Any]]:
    """IFEval's first prompts with their answers."""
    first = journal.read(place / OUTCOMES)[: request.evaluate.num_samples]
    return [line(one["prompt"], one["response"], one["stop_reason"], one["tokens"]) for one in first]


def metrics_of(result: TaskResult) -> dict[str, float]:
    """A task's metrics, IFEval's by their own names and another's after the task's."""
    if result.task == IFEVAL:
        return result.metrics
    return {f"{label(result.task)}/{name}": value for name, value in result.metrics.items()}


def publish(request: EvaluateRequest, held_out: dict[str, float], results: Sequence[TaskResult], draft: Draft) -> None:
    """Seal the result; its fingerprint leaves out inspect's logs, which name times and places."""
    failed = sum(result.failed for result in results)
    metrics = held_out | {name: value for result in results for name, value in metrics_of(result).items()}
    metrics["failed_samples"] = float(failed)
    told = [draft.path / OUTCOMES, draft.path / SAMPLES]
    prompts = next((one.request.prompts for one in request.answers if one.request.prompts), None)
    settings = drawn(request.evaluate, request.rendered.renderer_name, request.train.precision)
    draft.publish(
        EvalResult(
            path=draft.final,
            fingerprint=fingerprint.of_value([metrics, fingerprint.of_files(told, draft.path)]),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            prompts_fingerprint=prompts.fingerprint if prompts else "",
            pairs_fingerprint=request.rendered.fingerprint,
            tasks={label(result.task): result.task_version for result in results},
            settings=settings | {"engine": ", ".join(sorted({str(one.settings["engine"]) for one in results}))},
            failed=failed,
            metrics=metrics,
        )
    )
