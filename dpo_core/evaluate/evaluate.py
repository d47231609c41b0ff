"""The stage that measures one model: held-out preferences, IFEval through inspect-ai, and answers to look at."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inspect_ai import eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, ModelAPI

from dpo_core import fingerprint
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.answers import Answerer, Sampling
from dpo_core.evaluate.entry import dpo
from dpo_core.evaluate.ifeval import ifeval
from dpo_core.evaluate.outcomes import Outcome, shares, to_outcome
from dpo_core.model.load import load_model, load_tokenizer
from dpo_core.records import EvalResult, PromptSet
from dpo_core.render.registry import get_renderer
from dpo_core.render.rendered import open_split
from dpo_core.requests import EvaluateRequest
from dpo_core.store import Draft
from dpo_core.train.heldout import HeldOutSettings, measure
from dpo_core.train.layout import choose
from dpo_core.train.loop import loss_settings

OUTCOMES, SAMPLES, LOG = "outcomes.jsonl", "samples.jsonl", "ifeval.eval"
MOST_FAILED = 0.05


def run(request: EvaluateRequest, draft: Draft) -> None:
    """Load the model once and measure it; publish an EvalResult.

    Raises EvaluationError when the evaluation did not run to its end or too many prompts failed.
    """
    answerer = open_model(request)
    train = request.train
    layout = choose(answerer.model, train.layout, request.rendered)
    settings = HeldOutSettings(loss_settings(train), layout, train.precision)
    metrics = measure(answerer.model, request.rendered, request.reference, settings)
    sampling = Sampling(request.evaluate.max_new_tokens)
    outcomes: list[Outcome] = []
    if request.prompts:
        log = follow_instructions(answerer, request.prompts, (request.model.name, sampling), draft.path)
        outcomes = [to_outcome(sample) for sample in log.samples or []]
        metrics |= accuracies(log) | shares(outcomes)
    samples = shown(outcomes, request) if request.prompts else continued(answerer, request, sampling)
    write_lines(draft.path / OUTCOMES, [outcome.model_dump() for outcome in outcomes])
    write_lines(draft.path / SAMPLES, samples)
    publish(request, metrics, draft)


def open_model(request: EvaluateRequest) -> Answerer:
    """The model in evaluation mode, with the renderer that made the training data."""
    source = request.model
    model = load_model(source.path, trust_remote_code=source.trust_remote_code, dtype=request.dtype)
    renderer = get_renderer(request.rendered.renderer_name, load_tokenizer(source.path, source.trust_remote_code))
    return Answerer(model, renderer, request.evaluate.eval_batch_size, request.train.precision)


def follow_instructions(answerer: Answerer, prompts: PromptSet, how: tuple[str, Sampling], place: Path) -> EvalLog:
    """Run IFEval through inspect-ai; its log is left in ``place``.

    Raises EvaluationError unless it ended well with every sample in the log.
    """
    name, sampling = how
    # inspect-ai declares its decorated providers as classes, and makes them functions with the class's arguments.
    provider: Callable[..., ModelAPI] = dpo
    model = Model(provider(name, answerer=answerer), GenerateConfig(max_connections=prompts.prompts))
    logs = eval(
        ifeval(str(prompts.path)),
        model=model,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        max_samples=prompts.prompts,
        continue_on_fail=True,
        fail_on_error=MOST_FAILED,
        display="none",
        log_dir=str(place),
        # The live view of a running evaluation costs as much again as the evaluation's own bookkeeping.
        log_realtime=False,
        score_display=False,
        ctl_server=False,
    )
    checked = check(logs, prompts.prompts)
    Path(checked.location).rename(place / LOG)
    return checked


def check(logs: Sequence[EvalLog], expected: int) -> EvalLog:
    """The log of an evaluation that ran to its end.

    Raises EvaluationError for one that was interrupted, failed, or lost samples.
    """
    rule = f"At most {MOST_FAILED:.0%} of the prompts may fail, and none may be missing."
    if not logs or logs[0].status == "cancelled":
        raise EvaluationError("The evaluation was interrupted.", "It runs to its end or not at all.", "Run it again.")
    log = logs[0]
    samples = log.samples or []
    failed = [sample.error.message for sample in samples if sample.error]
    if log.status != "success" or len(failed) > MOST_FAILED * expected:
        cause = failed[0] if failed else (log.error.message if log.error else log.status)
        raise EvaluationError(f"{len(failed)} of {expected} prompts failed: {cause}.", rule, "--debug shows where.")
    if len(samples) != expected:
        raise EvaluationError(f"{len(samples)} of {expected} prompts are in the log.", rule, "Run it again.")
    return log


def accuracies(log: EvalLog) -> dict[str, float]:
    """``prompt_strict_acc`` and the others with their standard errors, as ``inspect_evals/ifeval`` names them."""
    scores = log.results.scores if log.results else []
    return {name: float(metric.value) for score in scores for name, metric in score.metrics.items()}


def shown(outcomes: Sequence[Outcome], request: EvaluateRequest) -> list[dict[str, Any]]:
    """The first prompts with their answers."""
    first = outcomes[: request.evaluate.num_samples]
    return [line(outcome.prompt, outcome.response, outcome.stop_reason, outcome.tokens) for outcome in first]


def continued(answerer: Answerer, request: EvaluateRequest, sampling: Sampling) -> list[dict[str, Any]]:
    """Held-out prompts with answers, where no task asked for any."""
    rows = open_split(request.rendered.path, "test")
    prompts = [rows[index].prompt.tolist() for index in range(min(request.evaluate.num_samples, len(rows)))]
    answers = answerer.answer_ids(prompts, sampling)
    texts = [answerer.renderer.decode(prompt) for prompt in prompts]
    told = zip(texts, answers, strict=True)
    return [line(text, answer.text, answer.stop_reason, answer.tokens) for text, answer in told]


def line(prompt: str, answer: str, stop_reason: str, tokens: int) -> dict[str, Any]:
    """One line of ``samples.jsonl``."""
    return {"prompt": prompt, "answer": answer, "stop_reason": stop_reason, "tokens": tokens}


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """JSON, an object a line."""
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def publish(request: EvaluateRequest, metrics: dict[str, float], draft: Draft) -> None:
    """Seal the result; its fingerprint leaves out inspect's log, which names times and places."""
    told = [draft.path / OUTCOMES, draft.path / SAMPLES]
    draft.publish(
        EvalResult(
            path=draft.final,
            fingerprint=fingerprint.of_value([metrics, fingerprint.of_files(told, draft.path)]),
            model_name=request.model.name,
            model_fingerprint=request.model.fingerprint,
            prompts_fingerprint=request.prompts.fingerprint if request.prompts else "",
            pairs_fingerprint=request.rendered.fingerprint,
            metrics=metrics,
        )
    )
