"""Prefect flow ``dpo``: from preferences and a base model to an evaluated, registered and perhaps promoted version."""

import importlib
import threading
from contextvars import ContextVar
from dataclasses import replace

from prefect import flow
from prefect.runtime import flow_run

from dpo_core.config.recipe import Recipe
from dpo_core.errors import TrainingError
from dpo_core.pipeline.pipeline import steps, walk
from dpo_core.pipeline.preflight import RunPlan, preflight
from dpo_core.process.run_stage import GPU_LIMIT
from dpo_core.records import Checkpoint, EvalResult, ModelVersion, Promotion, Record
from dpo_core.system import gc_tuning
from dpo_core.train.checkpoint import run_dir
from flows import tasks
from flows.gpu_limit import gpu_slot

MAX_STARTS = 6  # including the first
# The plan of a preflight that this process has already run.
CHECKED_PLAN: ContextVar[RunPlan | None] = ContextVar("checked_plan", default=None)


class PipelineOutcome(Record):
    """Outputs of a pipeline run."""

    checkpoint: Checkpoint
    base: EvalResult
    trained: EvalResult
    version: ModelVersion
    promotion: Promotion


def check_starts(count: int) -> None:
    """Stop a run that kills its worker each time.

    Raises TrainingError when the run was started more than ``MAX_STARTS`` times.
    """
    if count > MAX_STARTS:
        raise TrainingError(
            f"This run was started {count} times and never completed.",
            f"After {MAX_STARTS} starts the run itself is taken to be the cause, such as by running out of memory.",
            "Read its workers' logs; a new run with the same settings continues from the last checkpoint.",
        )


def import_in_background(module: str) -> None:
    """Import a module in a thread: MLflow takes seconds to import, which pass while the first stages run."""

    def load() -> None:
        with gc_tuning.paused():
            importlib.import_module(module)

    threading.Thread(target=load, name=f"import {module}").start()


@flow(name="dpo", description=__doc__, timeout_seconds=None, persist_result=False)
def pipeline(recipe: Recipe) -> PipelineOutcome:
    """Download and render preferences, train with DPO, evaluate, register, and promote if the gates pass."""
    check_starts(flow_run.run_count)
    GPU_LIMIT.set(gpu_slot)
    import_in_background("flows.recording.training_run")
    with tasks.StageTasks(recipe) as stage_tasks:
        outputs = walk(steps(run_plan(recipe)), stage_tasks.run)
        assert outputs is not None  # no last step was named
        from flows.registry.versions import Candidate  # lazy: mlflow, already imported in the background

        candidate = Candidate(outputs.checkpoint, outputs.pairs, outputs.rendered, outputs.base, outputs.trained)
        version = stage_tasks.register(candidate)
        promotion = stage_tasks.promote(candidate, version)
    return PipelineOutcome(
        checkpoint=outputs.checkpoint, base=outputs.base, trained=outputs.trained, version=version, promotion=promotion
    )


def run_plan(recipe: Recipe) -> RunPlan:
    """Return the plan that the command line made in this process; a deployment's run makes its own."""
    plan = CHECKED_PLAN.get()
    if plan is not None:
        return replace(plan, recipe=recipe)
    plan = preflight(recipe)
    run_dir.delete_other_run(recipe)
    return plan
