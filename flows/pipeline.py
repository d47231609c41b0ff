"""The flow: preferences and a model become an evaluated, registered, and perhaps promoted version."""

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

MOST_STARTS = 6  # the first among them
# What preflight found, where the process that runs the flow has already checked the recipe.
CHECKED: ContextVar[RunPlan | None] = ContextVar("checked", default=None)


class PipelineOutcome(Record):
    """What a run of the pipeline came to."""

    checkpoint: Checkpoint
    base: EvalResult
    trained: EvalResult
    version: ModelVersion
    promotion: Promotion


def check_starts(count: int) -> None:
    """Raises TrainingError for a run that took its workers with it time after time, which another would not survive."""
    if count > MOST_STARTS:
        raise TrainingError(
            f"This run was started {count} times and never ended.",
            f"After {MOST_STARTS} starts the run itself is taken to be the cause, such as by its need of memory.",
            "Look into its workers' logs; a new run with the same settings goes on from the last checkpoint.",
        )


def import_in_background(module: str) -> None:
    """Import a module in the background: MLflow's seconds pass while the first stages' processes are at work."""

    def load() -> None:
        with gc_tuning.importing():
            importlib.import_module(module)

    threading.Thread(target=load, name=f"import {module}").start()


@flow(name="dpo", description=__doc__, timeout_seconds=None, persist_result=False)
def pipeline(recipe: Recipe) -> PipelineOutcome:
    """Download and render preferences, train with DPO, evaluate, register, and promote on evidence."""
    check_starts(flow_run.run_count)
    GPU_LIMIT.set(gpu_slot)
    import_in_background("flows.training_run")
    with tasks.StageTasks(recipe) as stage_tasks:
        outputs = walk(steps(plan_of(recipe)), stage_tasks.run)
        from flows.registry.versions import Candidate  # lazy: mlflow, imported by now

        candidate = Candidate(outputs.checkpoint, outputs.pairs, outputs.rendered, outputs.base, outputs.trained)
        version = tasks.register(recipe, candidate)
        promotion = tasks.promote(recipe, candidate, version)
    return PipelineOutcome(
        checkpoint=outputs.checkpoint, base=outputs.base, trained=outputs.trained, version=version, promotion=promotion
    )


def plan_of(recipe: Recipe) -> RunPlan:
    """The plan that the command line made in this process, else a new one, as in a deployment's run."""
    plan = CHECKED.get()
    if plan is not None:
        return replace(plan, recipe=recipe)
    plan = preflight(recipe)
    run_dir.delete_other_run(recipe)
    return plan
