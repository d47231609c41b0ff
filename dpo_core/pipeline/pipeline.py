"""Pipeline: the stages of a run in their order. The only place that states it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from dpo_core.pipeline import base_model, evaluation_plan, stage_calls
from dpo_core.pipeline.evaluation_plan import EvaluationPlan
from dpo_core.pipeline.preflight import RunPlan
from dpo_core.process.run_stage import NOTHING, rerun_stage, run_stage
from dpo_core.records import (
    Checkpoint,
    EvalResult,
    ModelSource,
    PairSet,
    PromptSet,
    Record,
    ReferenceSet,
    RenderedSet,
)
from dpo_core.stages import warm_start
from dpo_core.stages.stage import Stage, StageCall, StageResult

EVALUATE_BASE = "evaluate the base"


@dataclass(frozen=True)
class Step:
    """The stage that a run comes to next.

    ``title``: what the user reads; the stage's name, but for the evaluation of the base.
    ``call``: what the stage is called with, None for a stage that this run skips.
    """

    title: str
    stage: Stage[Any]
    call: StageCall[Any] | None
    run: Callable[..., StageResult[Any]]


@dataclass(frozen=True)
class PipelineOutputs:
    """Records of a run's stages."""

    pairs: PairSet
    rendered: RenderedSet
    checkpoint: Checkpoint
    base: EvalResult
    trained: EvalResult


Steps = Generator[Step, Any, PipelineOutputs]


def steps(plan: RunPlan) -> Steps:
    """The steps of a run. Whoever runs a step sends its record back."""
    recipe = plan.recipe
    model = base_model.load(recipe, plan.base, plan.store)
    pairs: PairSet = yield step(plan, stage_calls.acquire_call(recipe, plan.data_source))
    prompts: PromptSet | None = None
    if plan.prompts_source is not None:
        prompts = yield step(plan, evaluation_plan.prompts_call(recipe, plan.prompts_source))
    evaluation = evaluation_plan.plan(recipe.evaluate, prompts, plan.store, plan.eval_environment)
    rendered: RenderedSet = yield step(plan, stage_calls.render_call(recipe, pairs, model))
    warm_start_call = stage_calls.warm_start_call(recipe, rendered, model)
    model = yield step(plan, warm_start_call) if warm_start_call else skipped(warm_start.STAGE, model)
    reference: ReferenceSet = yield step(plan, stage_calls.score_reference_call(recipe, rendered, model))
    checkpoint: Checkpoint = yield step(plan, stage_calls.train_call(recipe, rendered, reference, model, prompts))
    measured = EvaluationSteps(plan, rendered, reference, evaluation)
    base: EvalResult = yield measured.step(model, EVALUATE_BASE)
    trained: EvalResult = yield measured.step(stage_calls.trained_model(checkpoint, model), "evaluate")
    return PipelineOutputs(pairs, rendered, checkpoint, base, trained)


def step(plan: RunPlan, call: StageCall[Any]) -> Step:
    """A stage as it is."""

    def run(while_running: Any = NOTHING) -> StageResult[Any]:
        return run_stage(plan.store, call, while_running)

    return Step(call.stage.name, call.stage, call, run)


def skipped(stage: Stage[Any], record: Record) -> Step:
    """A stage that this run does not need; it hands on the record that it would have started from."""
    return Step(stage.name, stage, None, lambda: StageResult(record, True))


@dataclass(frozen=True)
class EvaluationSteps:
    """What every model of a run is evaluated on."""

    plan: RunPlan
    rendered: RenderedSet
    reference: ReferenceSet
    evaluation: EvaluationPlan

    def step(self, model: ModelSource, title: str) -> Step:
        """The evaluation of a model; with ``eval_python``, that interpreter generates before."""
        store = self.plan.store
        call, generation, answers = stage_calls.evaluate_calls(
            self.plan.recipe, model, self.rendered, self.reference, self.evaluation
        )

        def run() -> StageResult[EvalResult]:
            if generation and store.find(call.stage.name, call.cache_key, call.stage.output) is None:
                # A generation whose answers were lost since is run again, though its own output is still there.
                whole = all(store.find(answer.stage.name, answer.cache_key, answer.stage.output) for answer in answers)
                (run_stage if whole else rerun_stage)(store, generation)
            return run_stage(store, call)

        return Step(title, call.stage, call, run)


def walk(walked: Steps, run: Callable[[Step], Any], last: str | None = None) -> PipelineOutputs | None:
    """Run every step, up to the one titled ``last`` where one is given; ``run`` returns a step's record.

    Returns the outputs of a whole run, None of one that ended at ``last``.
    """
    record: Any = None
    while True:
        try:
            step = walked.send(record)
        except StopIteration as end:
            outputs: PipelineOutputs = end.value
            return outputs
        record = run(step)
        if step.title == last:
            return None
