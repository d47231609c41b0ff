"""Preflight: checks of a recipe before any work; it writes nothing, trains nothing and downloads nothing."""

from dataclasses import dataclass, field
from typing import Any

from dpo_core.cache.store import Store, store_of
from dpo_core.config.recipe import Recipe
from dpo_core.data import sources
from dpo_core.evaluate import task_names
from dpo_core.pipeline import base_model, evaluation_plan
from dpo_core.pipeline.base_model import InitialModel
from dpo_core.render.registry import check_renderer
from dpo_core.train.checkpoint import run_dir


@dataclass(frozen=True)
class RunPlan:
    """A recipe that passed preflight, with what was found on the way, so that nothing is looked up twice.

    ``data_source``: where the preferences are: demo, a path, a class, or a hub id and commit.
    ``prompts_source``: where IFEval's prompts are, None for a run without them.
    ``eval_environment``: versions in the environment of ``eval_python``; empty without it.
    """

    recipe: Recipe
    data_source: str
    prompts_source: str | None
    base: InitialModel
    eval_environment: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The stage cache of this recipe's runs."""
        return store_of(self.recipe)


def preflight(recipe: Recipe) -> RunPlan:
    """Refuse now what would fail later: wrong names, missing files, hubs out of reach, directories in use.

    Raises RecipeError, DataError or EvaluationError with what to do.
    """
    if recipe.render.renderer_name:
        check_renderer(recipe.render.renderer_name)
    run_dir.check_unused(recipe)
    data_source = sources.pin_source(recipe.data)
    task_names.resolve_all(recipe.evaluate.tasks)
    eval_environment = evaluation_plan.check_engine(recipe.evaluate)
    base = base_model.find(recipe)
    if base.weights is not None or base.is_demo:  # a hub model is checked when it has been downloaded
        base_model.check_renderer_and_memory(recipe, base)
    return RunPlan(recipe, data_source, evaluation_plan.prompts_source(recipe), base, eval_environment)
