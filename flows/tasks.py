"""The stages that MLflow hears nothing of, one Prefect task each: thin wrappers.

Nothing here imports MLflow: these tasks run while it is being imported.
"""

from dpo_core import asking, river
from dpo_core.data.report import TEXT
from dpo_core.produce import Produced
from dpo_core.recipe import Recipe
from dpo_core.records import EvalResult, ModelSource, PairSet, PromptSet, ReferenceSet, RenderedSet
from flows.stage import say, stage


@stage("acquire")
def acquire(recipe: Recipe) -> Produced[PairSet]:
    """The preferences, checked and split."""
    return river.acquire(recipe)


@stage("prompts")
def acquire_prompts(recipe: Recipe) -> Produced[PromptSet | None]:
    """The instruction-following prompts."""
    produced: Produced[PromptSet | None] | None = asking.acquire_prompts(recipe)
    return produced or Produced(None, True)


@stage("render")
def render(recipe: Recipe, pairs: PairSet, model: ModelSource) -> Produced[RenderedSet]:
    """Token ids of every pair."""
    produced = river.render(recipe, pairs, model)
    say((produced.record.path / TEXT).read_text())
    return produced


@stage("warm_start")
def warm_start(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ModelSource]:
    """The model after a light supervised phase."""
    return river.warm_start(recipe, rendered, model)


@stage("score_reference")
def score_reference(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ReferenceSet]:
    """The reference's log-probabilities."""
    return river.score_reference(recipe, rendered, model)


@stage("evaluate")
def evaluate(recipe: Recipe, model: ModelSource, inputs: river.EvaluationInputs) -> Produced[EvalResult]:
    """One model on held-out pairs and prompts."""
    return river.evaluate(recipe, model, inputs)
