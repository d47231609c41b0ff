"""Evaluation stage for one model: held-out preference metrics, task metrics, and samples of its responses."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from shutil import copyfile
from typing import Any

from transformers import PreTrainedModel

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft, Store
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.generate import SAMPLES, continue_prompts, sample_line
from dpo_core.evaluate.ifeval.ifeval_checkers import set_nltk_data
from dpo_core.evaluate.run_task import OUTCOMES, find_or_generate, generation_settings, to_engine_config, write_jsonl
from dpo_core.evaluate.task_names import IFEVAL, label
from dpo_core.inference import select_engine
from dpo_core.inference.generator import ResponseGenerator
from dpo_core.inference.load_engine import build_engine, open_engine, release_memory
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.records import EvalResult, SampleSet, TaskResult
from dpo_core.render.registry import get_renderer
from dpo_core.stages.evaluate import EvaluateRequest
from dpo_core.train.checkpoint import journal
from dpo_core.train.validation import validate, validation_config

REWARDS = "rewards.jsonl"


def run(request: EvaluateRequest, draft: Draft) -> None:
    """Load the model once, evaluate it, generate the responses that are not cached, and publish an EvalResult.

    Raises EvaluationError when a task did not finish or too many of its samples failed.
    """
    set_nltk_data(request.evaluate.nltk_data)
    source, train = request.model, request.train
    model = load_model(source.path, trust_remote_code=source.trust_remote_code, dtype=request.dtype)
    settings = validation_config(model, train, request.rendered, request.reference)
    held_out = validate(model, request.rendered, request.reference, settings)

    @cache
    def generator() -> ResponseGenerator:
        return load_generator(model, request)

    results = [find_or_generate(draft.store, keyed, generator) for keyed in request.answers]
    for result in results:
        copy_logs(result, draft.path)
    has_ifeval = any(result.task == IFEVAL for result in results)
    if not has_ifeval:
        write_jsonl(draft.path / OUTCOMES, [])
    write_jsonl(
        draft.path / SAMPLES,
        ifeval_samples(draft.path, request) if has_ifeval else held_out_samples(draft.store, request, generator),
    )
    rewards = zip(held_out.rewards.chosen, held_out.rewards.rejected, strict=True)
    write_jsonl(draft.path / REWARDS, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in rewards])
    publish(request, held_out.metrics_with_noise(source.margin_noise), results, draft)


def load_generator(model: PreTrainedModel, request: EvaluateRequest) -> ResponseGenerator:
    """A generator with the model that was evaluated and the renderer of its training data; vLLM loads the model again.

    Raises EvaluationError when ``eval_python`` is set: then cached responses are the only source.
    """
    if request.evaluate.eval_python:
        raise missing_responses()
    source, precision = request.model, request.train.precision
    config = to_engine_config(request.evaluate, precision, source)
    engine_name = select_engine.choose_engine(config.engine, model.device.type, precision)
    if engine_name == "vllm":
        release_memory(model)
        engine = open_engine(source.path, config).engine
    else:
        engine = build_engine(model, engine_name, precision)
    renderer = get_renderer(request.rendered.renderer_name, load_tokenizer(source.path, source.trust_remote_code))
    return ResponseGenerator(engine, renderer, config.batch_size)


def missing_responses() -> EvaluationError:
    """The error for cached responses of another interpreter that are missing or damaged."""
    rule = "With eval_python only that interpreter generates responses."
    return EvaluationError("Cached responses are missing or damaged.", rule, "Run the same command again.")


def held_out_samples(
    store: Store, request: EvaluateRequest, generator: Callable[[], ResponseGenerator]
) -> list[dict[str, Any]]:
    """Lines of ``samples.jsonl``: held-out prompts with responses, from another interpreter or generated now.

    Raises EvaluationError when the other interpreter's samples are missing.
    """
    if request.samples is None:
        return continue_prompts(generator, request.rendered, request.evaluate)
    sample_set = store.find("generate", request.samples, SampleSet)
    if sample_set is None:
        raise missing_responses()
    return journal.read(sample_set.path)


def copy_logs(result: TaskResult, directory: Path) -> None:
    """Copy a task's log and outcomes into the evaluation's directory."""
    for path in result.path.iterdir():
        if path.suffix == ".eval" or path.name == OUTCOMES:
            copyfile(path, directory / path.name)


def ifeval_samples(directory: Path, request: EvaluateRequest) -> list[dict[str, Any]]:
    """Lines of ``samples.jsonl``: IFEval's first prompts with their responses."""
    outcomes = journal.read(directory / OUTCOMES)[: request.evaluate.num_samples]
    return [sample_line(line["prompt"], line["response"], line["stop_reason"], line["tokens"]) for line in outcomes]


def prefixed_metrics(result: TaskResult) -> dict[str, float]:
    """A task's metrics; their names are prefixed with the task's, except IFEval's."""
    if result.task == IFEVAL:
        return result.metrics
    return {f"{label(result.task)}/{name}": value for name, value in result.metrics.items()}


def publish(request: EvaluateRequest, held_out: dict[str, float], results: Sequence[TaskResult], draft: Draft) -> None:
    """Publish an EvalResult; its fingerprint leaves out inspect-ai's logs, which hold times and paths."""
    failed = sum(result.failed for result in results)
    metrics = held_out | {name: value for result in results for name, value in prefixed_metrics(result).items()}
    metrics["failed_samples"] = float(failed)
    files = [draft.path / OUTCOMES, draft.path / SAMPLES]
    prompts = next((keyed.request.prompts for keyed in request.answers if keyed.request.prompts), None)
    settings = generation_settings(request.evaluate, request.rendered.renderer_name, request.train.precision)
    draft.publish(
        EvalResult(
            path=draft.final,
            fingerprint=fingerprint.of_value([metrics, fingerprint.of_files(files, draft.path)]),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            prompts_fingerprint=prompts.fingerprint if prompts else "",
            pairs_fingerprint=request.rendered.fingerprint,
            tasks={label(result.task): result.task_version for result in results},
            settings=settings | {"engine": ", ".join(sorted({str(result.settings["engine"]) for result in results}))},
            failed=failed,
            metrics=metrics,
        )
    )
