"""Held-out prompts with a model's answers, to look at where no task asks for any: ``samples.jsonl``; and their stage.

It is a stage of its own where another interpreter generates (``eval_python``).
"""

from collections.abc import Callable
from typing import Any

from dpo_core import fingerprint
from dpo_core.evaluate.answer import to_how, to_sampling, write_lines
from dpo_core.evaluate.answers import Answerer, open_answerer
from dpo_core.recipe import EvaluateSettings
from dpo_core.records import RenderedSet, SampleSet
from dpo_core.render.rendered import open_split
from dpo_core.requests import SamplesRequest
from dpo_core.store import Draft

SAMPLES = "samples.jsonl"


def run(request: SamplesRequest, draft: Draft) -> None:
    """Open the model and continue the first held-out prompts; publish a SampleSet."""

    def answerer() -> Answerer:
        how = to_how(request.evaluate, request.precision, request.model)
        return open_answerer(request.model.path, how, request.rendered.renderer_name, request.model.name)

    lines = continued(answerer, request.rendered, request.evaluate)
    write_lines(draft.path / SAMPLES, lines)
    draft.publish(SampleSet(path=draft.final / SAMPLES, fingerprint=fingerprint.of_value(lines), samples=len(lines)))


def continued(
    answerer: Callable[[], Answerer], rendered: RenderedSet, settings: EvaluateSettings
) -> list[dict[str, Any]]:
    """The first ``num_samples`` held-out prompts with answers; no model is opened for none."""
    rows = open_split(rendered.path, "test")
    prompts = [rows[index].prompt.tolist() for index in range(min(settings.num_samples, len(rows)))]
    if not prompts:
        return []
    opened = answerer()
    answers = opened.answer_ids(prompts, to_sampling(settings))
    texts = [opened.renderer.decode(prompt) for prompt in prompts]
    told = zip(texts, answers, strict=True)
    return [line(text, answer.text, answer.stop_reason, answer.tokens) for text, answer in told]


def line(prompt: str, answer: str, stop_reason: str, tokens: int) -> dict[str, Any]:
    """One line of ``samples.jsonl``."""
    return {"prompt": prompt, "answer": answer, "stop_reason": stop_reason, "tokens": tokens}
