"""The flow: preferences and a model become an evaluated, registered, and perhaps promoted version."""

import importlib
import threading

from prefect import flow
from prefect.runtime import flow_run

from dpo_core import asking, garbage, produce, river, weights
from dpo_core.errors import TrainingError
from dpo_core.recipe import Recipe
from dpo_core.records import Checkpoint, EvalResult, ModelVersion, Promotion, Record
from flows import tasks
from flows.turn import turn

MOST_STARTS = 6  # the first among them


class Outcome(Record):
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


def load_ahead(module: str) -> None:
    """Import a module in the background: MLflow's seconds pass while the first stages' processes are at work."""

    def load() -> None:
        with garbage.importing():
            importlib.import_module(module)

    threading.Thread(target=load, name=f"import {module}").start()


@flow(name="dpo", description=__doc__, timeout_seconds=None, persist_result=False)
def pipeline(recipe: Recipe) -> Outcome:
    """Download and render preferences, train with DPO, evaluate, register, and promote on evidence."""
    check_starts(flow_run.run_count)
    produce.TURN.set(turn)
    load_ahead("flows.tracked")
    river.preflight(recipe)
    base = weights.base(recipe)
    pairs = tasks.acquire(recipe)
    asked = asking.questions(recipe, tasks.acquire_prompts(recipe))
    rendered = tasks.render(recipe, pairs, base)
    start = tasks.warm_start(recipe, rendered, base)
    reference = tasks.score_reference(recipe, rendered, start)
    from flows import tracked  # lazy: loaded by now
    from flows.recording import Training
    from flows.registry import Candidate

    checkpoint = tracked.train(recipe, rendered, reference, start)
    inputs = river.EvaluationInputs(rendered, reference, asked)
    with tracked.accounted(recipe, checkpoint):
        with tracked.meanwhile(recipe, Training(checkpoint, pairs, rendered)):
            before = tasks.evaluate(recipe, start, inputs)
        after = tasks.evaluate(recipe, river.trained(checkpoint, start), inputs)
        candidate = Candidate(checkpoint, pairs, rendered, before, after)
        version = tracked.register(recipe, candidate)
        promotion = tracked.promote(recipe, candidate, version)
    return Outcome(checkpoint=checkpoint, base=before, trained=after, version=version, promotion=promotion)
