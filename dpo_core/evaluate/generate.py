"""Generation stage that runs in another interpreter (``eval_python``): one model's responses to all tasks, and to
held-out prompts (``samples.jsonl``) when IFEval is not among the tasks."""

from collections.abc import Callable
from functools import cache
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.config.recipe import EvaluateSettings
from dpo_core.evaluate.ifeval.ifeval_checkers import set_nltk_data
from dpo_core.evaluate.run_task import find_or_generate, to_engine_config, to_sampling, write_jsonl
from dpo_core.inference.generator import ResponseGenerator, open_generator
from dpo_core.records import RenderedSet, SampleSet
from dpo_core.render.token_dataset import open_split
from dpo_core.stages.evaluation.generate import GenerateRequest

SAMPLES = "samples.jsonl"


def run(request: GenerateRequest, draft: Draft) -> None:
    """Load the model once, generate the responses that are not cached, and publish a SampleSet.

    Raises as :func:`dpo_core.evaluate.run_task.ask` does.
    """
    set_nltk_data(request.evaluate.nltk_data)

    @cache
    def generator() -> ResponseGenerator:
        config = to_engine_config(request.evaluate, request.precision, request.model)
        return open_generator(request.model.path, config, request.rendered.renderer_name, request.model.name)

    for keyed in request.answers:
        find_or_generate(draft.store, keyed, generator)
    lines = continue_prompts(generator, request.rendered, request.evaluate) if request.continues else []
    write_jsonl(draft.path / SAMPLES, lines)
    draft.publish(SampleSet(path=draft.final / SAMPLES, fingerprint=fingerprint.of_value(lines), samples=len(lines)))


def continue_prompts(
    load_generator: Callable[[], ResponseGenerator], rendered: RenderedSet, settings: EvaluateSettings
) -> list[dict[str, Any]]:
    """Lines of ``samples.jsonl`` for the first ``num_samples`` held-out prompts.

    ``load_generator`` loads the model; it is not called when there are no prompts.
    """
    prompts = open_split(rendered.path, "test").whole_prompts(settings.num_samples)
    if not prompts:
        return []
    response_generator = load_generator()
    responses = response_generator.responses_to_ids(prompts, to_sampling(settings))
    texts = [response_generator.renderer.decode(prompt) for prompt in prompts]
    return [
        sample_line(text, response.text, response.stop_reason, response.tokens)
        for text, response in zip(texts, responses, strict=True)
    ]


def sample_line(prompt: str, response: str, stop_reason: str, tokens: int) -> dict[str, Any]:
    """One line of ``samples.jsonl``."""
    return {"prompt": prompt, "answer": response, "stop_reason": stop_reason, "tokens": tokens}
