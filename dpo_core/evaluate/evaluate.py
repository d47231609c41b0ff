"""The stage that measures one model: held-out preferences, IFEval through inspect-ai, and answers to look at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dpo_core import fingerprint
from dpo_core.evaluate.answers import Answerer, Sampling
from dpo_core.evaluate.ifeval import ifeval
from dpo_core.evaluate.instructions import sentences_from
from dpo_core.evaluate.ledger import Ledger
from dpo_core.evaluate.outcomes import Outcome, shares, to_outcome
from dpo_core.evaluate.running import Asked, as_model, failures, measures, run_task, version
from dpo_core.evaluate.task_names import IFEVAL, label, settle
from dpo_core.model import engines
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.model.opened import How, engine_of, open_engine, release
from dpo_core.recipe import EvaluateSettings
from dpo_core.records import EvalResult, ModelSource
from dpo_core.render.registry import get_renderer
from dpo_core.render.rendered import open_split
from dpo_core.requests import EvaluateRequest
from dpo_core.store import Draft
from dpo_core.train.heldout import HeldOutSettings, measure
from dpo_core.train.layout import choose
from dpo_core.train.loop import loss_settings

OUTCOMES, SAMPLES, REWARDS = "outcomes.jsonl", "samples.jsonl", "rewards.jsonl"


def run(request: EvaluateRequest, draft: Draft) -> None:
    """Load the model once and measure it; publish an EvalResult.

    Raises EvaluationError when the evaluation did not run to its end or too many prompts failed.
    """
    sentences_from(request.evaluate.nltk_data)
    source, train = request.model, request.train
    model = load_model(source.path, trust_remote_code=source.trust_remote_code, dtype=request.dtype)
    settings = HeldOutSettings(loss_settings(train), choose(model, train.layout, request.rendered), train.precision)
    held_out = measure(model, request.rendered, request.reference, settings)
    answerer = to_answerer(model, request, draft)
    asked = ask_all(answerer, request, draft.path)
    samples = shown(asked.outcomes, request) if asked.outcomes else continued(answerer, request)
    write_lines(draft.path / OUTCOMES, [outcome.model_dump() for outcome in asked.outcomes])
    write_lines(draft.path / SAMPLES, samples)
    rewards = zip(held_out.rewards.chosen, held_out.rewards.rejected, strict=True)
    write_lines(draft.path / REWARDS, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in rewards])
    told = drawn(request.evaluate, train.precision, answerer)
    publish(request, replace(asked, metrics=held_out.metrics | asked.metrics), told, draft)
    unfinished(draft).unlink(missing_ok=True)


def to_answerer(model: PreTrainedModel, request: EvaluateRequest, draft: Draft) -> Answerer:
    """The model that was measured, with the renderer that made the training data; vLLM reads it anew."""
    source, precision = request.model, request.train.precision
    how = to_how(request.evaluate, precision, source)
    chosen = engines.choose(how.engine, model.device.type, precision)
    if chosen == "vllm":
        release(model)
        engine = open_engine(source.path, how).engine
    else:
        engine = engine_of(model, chosen, precision)
    renderer = get_renderer(request.rendered.renderer_name, load_tokenizer(source.path, source.trust_remote_code))
    return Answerer(engine, renderer, how.batch_size, Ledger(unfinished(draft)))


def to_how(settings: EvaluateSettings, precision: str, source: ModelSource) -> How:
    """How the recipe has a model generate."""
    size = None if settings.eval_batch_size == "auto" else settings.eval_batch_size
    return How(precision, settings.eval_engine, size, source.trust_remote_code)


@dataclass(frozen=True, slots=True)
class Said:
    """What came of the tasks: metrics, those of tasks other than IFEval after the task's name, the tasks' versions,
    how many samples failed, and IFEval's outcomes."""

    metrics: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


def ask_all(answerer: Answerer, request: EvaluateRequest, place: Path) -> Said:
    """Every task, one after the other."""
    said = Said()
    model = as_model(answerer, request.model.name, to_sampling(request.evaluate))
    for name in settle(request.evaluate.tasks):
        if name != IFEVAL:
            log = run_task(model, Asked(name, name, place, request.evaluate.task_limit))
            told = {f"{label(name)}/{metric}": value for metric, value in measures(log).items()}
        elif request.prompts:
            log = run_task(model, Asked(ifeval(str(request.prompts.path)), name, place))
            outcomes = [to_outcome(sample) for sample in log.samples or []]
            said, told = replace(said, outcomes=outcomes), measures(log) | shares(outcomes)
        else:
            continue
        tasks = said.tasks | {label(name): version(log)}
        said = replace(said, metrics=said.metrics | told, tasks=tasks, failed=said.failed + failures(log))
    return said


def to_sampling(settings: EvaluateSettings) -> Sampling:
    """How answers are drawn, as the recipe says."""
    return Sampling(settings.max_new_tokens, settings.eval_temperature, settings.eval_seed)


def unfinished(draft: Draft) -> Path:
    """Where a stage keeps the answers that it has while it is not done; a later attempt finds them there."""
    return draft.final.with_name(f".{draft.final.name}.answers.jsonl")


def shown(outcomes: Sequence[Outcome], request: EvaluateRequest) -> list[dict[str, Any]]:
    """The first prompts with their answers."""
    first = outcomes[: request.evaluate.num_samples]
    return [line(outcome.prompt, outcome.response, outcome.stop_reason, outcome.tokens) for outcome in first]


def continued(answerer: Answerer, request: EvaluateRequest) -> list[dict[str, Any]]:
    """Held-out prompts with answers, where no task asked for any."""
    rows = open_split(request.rendered.path, "test")
    prompts = [rows[index].prompt.tolist() for index in range(min(request.evaluate.num_samples, len(rows)))]
    answers = answerer.answer_ids(prompts, to_sampling(request.evaluate))
    texts = [answerer.renderer.decode(prompt) for prompt in prompts]
    told = zip(texts, answers, strict=True)
    return [line(text, answer.text, answer.stop_reason, answer.tokens) for text, answer in told]


def line(prompt: str, answer: str, stop_reason: str, tokens: int) -> dict[str, Any]:
    """One line of ``samples.jsonl``."""
    return {"prompt": prompt, "answer": answer, "stop_reason": stop_reason, "tokens": tokens}


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """JSON, an object a line."""
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def drawn(settings: EvaluateSettings, precision: str, answerer: Answerer) -> dict[str, str | float | None]:
    """How answers were drawn, for a record."""
    names = ("max_new_tokens", "eval_temperature", "eval_seed", "ifeval_limit", "task_limit")
    return {name: getattr(settings, name) for name in names} | {
        "renderer_name": answerer.renderer.name,
        "precision": precision,
        "engine": answerer.engine.name,
    }


def publish(request: EvaluateRequest, said: Said, settings: dict[str, str | float | None], draft: Draft) -> None:
    """Seal the result; its fingerprint leaves out inspect's log, which names times and places."""
    told = [draft.path / OUTCOMES, draft.path / SAMPLES]
    metrics = said.metrics | {"failed_samples": float(said.failed)}
    draft.publish(
        EvalResult(
            path=draft.final,
            fingerprint=fingerprint.of_value([metrics, fingerprint.of_files(told, draft.path)]),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            prompts_fingerprint=request.prompts.fingerprint if request.prompts else "",
            pairs_fingerprint=request.rendered.fingerprint,
            tasks=said.tasks,
            settings=settings,
            failed=said.failed,
            metrics=metrics,
        )
    )
