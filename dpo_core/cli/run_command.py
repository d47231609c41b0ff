"""Command that runs the pipeline up to a stage, without Prefect and MLflow; each stage prints a line."""

import time
from typing import Any

from dpo_core.config.recipe import Recipe
from dpo_core.data.report import TEXT
from dpo_core.pipeline.pipeline import Step, steps, walk
from dpo_core.pipeline.preflight import preflight
from dpo_core.records import EvalResult, RenderedSet
from dpo_core.train.checkpoint import run_dir

FIELDS = ("path", "train_pairs", "test_pairs", "copied_pairs", "tokens", "step", "renderer_name")
METRICS = ("prompt_strict_acc", "test/accuracy", "test/nll_chosen")


def run_up_to(recipe: Recipe, last: str) -> None:
    """Run the stages in their order, up to and including ``last``."""
    plan = preflight(recipe)
    run_dir.delete_other_run(recipe)
    started = time.monotonic()

    def run_and_print(step: Step) -> Any:
        nonlocal started
        result = step.run()
        status = "cached" if result.cached else f"done in {time.monotonic() - started:.1f} s"
        print(f"{step.title}: {status}, {summary(result.record)}", flush=True)
        if isinstance(result.record, RenderedSet):
            print((result.record.path / TEXT).read_text(), flush=True)
        started = time.monotonic()
        return result.record

    walk(steps(plan), run_and_print, last)


def summary(record: Any) -> str:
    """A record's main fields and metrics, comma-separated."""
    parts = [f"{name}={value}" for name, value in record if name in FIELDS]
    if isinstance(record, EvalResult):
        parts += [f"{name}={record.metrics[name]:.4f}" for name in METRICS if name in record.metrics]
    return ", ".join(parts)
