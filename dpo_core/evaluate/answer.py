"""The stage that asks one model one task, and keeps every answer with its scores."""

from dataclasses import replace

from dpo_core import fingerprint
from dpo_core.evaluate.answers import open_answerer
from dpo_core.evaluate.evaluate import OUTCOMES, drawn, to_how, to_sampling, unfinished, write_lines
from dpo_core.evaluate.ifeval import ifeval
from dpo_core.evaluate.instructions import sentences_from
from dpo_core.evaluate.ledger import Ledger
from dpo_core.evaluate.outcomes import Sampled, judged, shares, to_outcome, to_sampled
from dpo_core.evaluate.running import Asked, as_model, failures, measures, run_task, version
from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.records import TaskResult
from dpo_core.requests import AnswerRequest
from dpo_core.store import Draft

ANSWERS = "answers.jsonl"


def run(request: AnswerRequest, draft: Draft) -> None:
    """Ask and judge; publish a TaskResult. What was answered before an interruption is not asked again.

    Raises EvaluationError when the task did not run to its end, had no samples, or too many of them failed.
    """
    settings = request.evaluate
    sentences_from(settings.nltk_data)
    how = to_how(settings, request.precision, request.model)
    opened = open_answerer(request.model.path, how, request.renderer_name, request.model.name)
    answerer = replace(opened, ledger=Ledger(unfinished(draft)))
    task = ifeval(str(request.prompts.path)) if request.prompts else request.task
    limit = None if request.prompts else settings.task_limit
    log = run_task(
        as_model(answerer, request.model.name, to_sampling(settings)), Asked(task, request.task, draft.path, limit)
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
            settings=drawn(settings, request.precision, answerer),
            samples=len(answers),
            failed=failures(log),
            metrics=metrics,
        )
    )
    unfinished(draft).unlink(missing_ok=True)


def read_answers(result: TaskResult) -> list[Sampled]:
    """Every sample of a result."""
    return [Sampled.model_validate_json(line) for line in (result.path / ANSWERS).read_text().splitlines()]
