"""The stage in which another interpreter generates (``eval_python``) all that one model is asked; and the answers to
held-out prompts, ``samples.jsonl``, to look at where no task asks for any."""

from collections.abc import Callable
from functools import cache
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.config.recipe import EvaluateSettings
from dpo_core.evaluate.ifeval.ifeval_checkers import sentences_from
from dpo_core.evaluate.run_task import answered, to_how, to_sampling, write_lines
from dpo_core.inference.generator import ResponseGenerator, open_generator
from dpo_core.records import RenderedSet, SampleSet
from dpo_core.render.token_dataset import open_split
from dpo_core.stages.evaluation.generate import GenerateRequest

SAMPLES = "samples.jsonl"


def run(request: GenerateRequest, draft: Draft) -> None:
    """Open the model once, give the answers that are not kept yet, and continue held-out prompts; publish a SampleSet.

    Raises as :func:`dpo_core.evaluate.run_task.ask` does.
    """
    sentences_from(request.evaluate.nltk_data)

    @cache
    def answerer() -> ResponseGenerator:
        how = to_how(request.evaluate, request.precision, request.model)
        return open_generator(request.model.path, how, request.rendered.renderer_name, request.model.name)

    for one in request.answers:
        answered(draft.store, one, answerer)
    lines = continued(answerer, request.rendered, request.evaluate) if request.continues else []
    write_lines(draft.path / SAMPLES, lines)
    draft.publish(SampleSet(path=draft.final / SAMPLES, fingerprint=fingerprint.of_value(lines), samples=len(lines)))


def continued(
    answerer: Callable[[], ResponseGenerator], rendered: RenderedSet, settings: EvaluateSettings
) -> list[dict[str, Any]]:
    """The first ``num_samples`` held-out prompts with answers; no model is opened for none."""
    prompts = open_split(rendered.path, "test").whole_prompts(settings.num_samples)
    if not prompts:
        return []
    opened = answerer()
    answers = opened.responses_to_ids(prompts, to_sampling(settings))
    texts = [opened.renderer.decode(prompt) for prompt in prompts]
    told = zip(texts, answers, strict=True)
    return [line(text, answer.text, answer.stop_reason, answer.tokens) for text, answer in told]


def line(prompt: str, answer: str, stop_reason: str, tokens: int) -> dict[str, Any]:
    """One line of ``samples.jsonl``."""
    return {"prompt": prompt, "answer": answer, "stop_reason": stop_reason, "tokens": tokens}
