"""The whole river without an orchestrator, stage after stage, each told in a line."""

import time
from collections.abc import Iterator
from typing import Any

from dpo_core import asking, river, weights
from dpo_core.data.report import TEXT
from dpo_core.produce import Produced
from dpo_core.recipe import Recipe
from dpo_core.records import EvalResult, RenderedSet

SHOWN = ("path", "train_pairs", "test_pairs", "copied_pairs", "tokens", "step", "renderer_name")
METRICS_SHOWN = ("prompt_strict_acc", "test/accuracy", "test/nll_chosen")


def flow_to(recipe: Recipe, last: str) -> None:
    """Run the stages in their order, up to ``last``."""
    river.preflight(recipe)
    began = time.monotonic()
    for stage, produced in course(recipe):
        done = "cached" if produced.cached else f"done in {time.monotonic() - began:.1f} s"
        print(f"{stage}: {done}, {told(produced.record)}", flush=True)
        if isinstance(produced.record, RenderedSet):
            print((produced.record.path / TEXT).read_text(), flush=True)
        if stage == last:
            return
        began = time.monotonic()


def course(recipe: Recipe) -> Iterator[tuple[str, Produced[Any]]]:
    """Each stage's name and what it produced; ``evaluate`` comes last, after the base's evaluation."""
    model = weights.base(recipe)
    pairs = river.acquire(recipe)
    yield "acquire", pairs
    prompts = asking.acquire_prompts(recipe)
    if prompts:
        yield "prompts", prompts
    asked = asking.questions(recipe, prompts.record if prompts else None)
    rendered = river.render(recipe, pairs.record, model)
    yield "render", rendered
    start = river.warm_start(recipe, rendered.record, model)
    yield "warm_start", start
    reference = river.score_reference(recipe, rendered.record, start.record)
    yield "score_reference", reference
    checkpoint = river.train(recipe, rendered.record, reference.record, start.record)
    yield "train", checkpoint
    inputs = river.EvaluationInputs(rendered.record, reference.record, asked)
    yield "evaluate the base", river.evaluate(recipe, start.record, inputs)
    yield "evaluate", river.evaluate(recipe, river.trained(checkpoint.record, start.record), inputs)


def told(record: Any) -> str:
    """The facts of a record that fit in a line."""
    facts = [f"{name}={value}" for name, value in record if name in SHOWN]
    if isinstance(record, EvalResult):
        facts += [f"{name}={record.metrics[name]:.4f}" for name in METRICS_SHOWN if name in record.metrics]
    return ", ".join(facts)
