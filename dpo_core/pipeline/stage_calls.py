"""Stage calls: what each stage of a run is called with, from the recipe and the records of earlier stages."""

from dpo_core.cache.store import store_of
from dpo_core.config.recipe import Recipe
from dpo_core.config.redact import redacted
from dpo_core.data import sources
from dpo_core.errors import RecipeError
from dpo_core.inference import select_engine
from dpo_core.pipeline import evaluation_plan
from dpo_core.pipeline.base_model import reference_model
from dpo_core.pipeline.evaluation_plan import EvaluationPlan
from dpo_core.records import (
    Checkpoint,
    EvalResult,
    ModelSource,
    PairSet,
    PromptSet,
    ReferenceSet,
    RenderedSet,
    SampleSet,
    TaskResult,
)
from dpo_core.render.registry import renderer_identity, resolve_renderer, warn_about_renderer
from dpo_core.stages import acquire, evaluate, render, score_reference, train, warm_start
from dpo_core.stages.evaluate import EvaluateRequest
from dpo_core.stages.stage import StageCall
from dpo_core.stages.train import TrainRequest
from dpo_core.stages.warm_start import WarmStartRequest
from dpo_core.train import data_order
from dpo_core.train.checkpoint import run_dir

IN_TRAINING = "dpo_core.evaluate.in_training"
MOST_CACHED, BYTES_PER_LOGP = 4 * 2**30, 4


def acquire_call(recipe: Recipe, source: str) -> StageCall[PairSet]:
    """The preferences at ``source``, checked and split."""
    return acquire.call(recipe.data, source, sources.source_identity(source, recipe.data), recipe.train.seed)


def render_call(recipe: Recipe, pairs: PairSet, model: ModelSource) -> StageCall[RenderedSet]:
    """Token ids of every pair."""
    warn_about_renderer(recipe.render.renderer_name, model.name, model.path)
    name = resolve_renderer(recipe.render.renderer_name, model.name, model.path)
    return render.call(pairs, model, recipe.render.model_copy(update={"renderer_name": name}), renderer_identity(name))


def warm_start_call(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> StageCall[ModelSource] | None:
    """The model after a short supervised phase, None for a run without one.

    Raises RecipeError for a model without weights that is not to be trained first.
    """
    if recipe.warm_start.sft_steps:
        return warm_start.call(
            WarmStartRequest(rendered=rendered, model=model, warm_start=recipe.warm_start, train=recipe.train)
        )
    if not model.has_weights:
        raise RecipeError(
            f"{model.path} holds no weights.", "A model without weights needs a warm start.", "Set sft_steps."
        )
    return None


def score_reference_call(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> StageCall[ReferenceSet]:
    """The reference's log-probabilities of every completion that the run will see, and of the test split's."""
    data_order.total_steps(rendered.train_pairs, recipe.train)
    needed = None if on_the_fly(recipe, rendered) else data_order.visited_pairs(rendered.train_pairs, recipe.train)
    return score_reference.call(rendered, reference_model(recipe, model), recipe.train, frozen_dtype(recipe), needed)


def on_the_fly(recipe: Recipe, rendered: RenderedSet) -> bool:
    """Whether the reference runs in every step instead of once before training.

    ``auto``: when no pair comes twice and the stored log-probabilities might take more than MOST_CACHED bytes.
    """
    train_settings = recipe.train
    if train_settings.reference_mode != "auto":
        return train_settings.reference_mode == "on_the_fly"
    return train_settings.num_epochs == 1 and rendered.tokens * BYTES_PER_LOGP > MOST_CACHED


def frozen_dtype(recipe: Recipe) -> str:
    """Type of the weights that LoRA leaves as they are; weights that train are float32 always.

    Base and exported model are measured in it alike: a difference of types would count as one of models.
    """
    halved = recipe.model.lora_rank and recipe.train.precision == "bf16" and recipe.model.export_dtype != "float32"
    return "bfloat16" if halved else "float32"


def export_dtype(recipe: Recipe) -> str:
    """Type of the final model's weights: the recipe's, else that in which they are trained and measured."""
    wanted = recipe.model.export_dtype
    return frozen_dtype(recipe) if wanted == "auto" else wanted


def train_call(
    recipe: Recipe, rendered: RenderedSet, reference: ReferenceSet, model: ModelSource, prompts: PromptSet | None
) -> StageCall[Checkpoint]:
    """The policy, trained; ``log_path`` holds its journal and checkpoints.

    ``prompts``: IFEval's, of which the policy answers the first ``infrequent_prompts`` during training.
    """
    settings = recipe.evaluate
    prompts = prompts if settings.infrequent_prompts else None
    in_training = [prompts.fingerprint, settings.infrequent_prompts] if prompts else []
    inputs = {
        "rendered": rendered.fingerprint,
        "model": model.fingerprint,
        "lora": [recipe.model.lora_rank, recipe.model.lora_alpha, recipe.model.lora_targets],
        "numerics": [on_the_fly(recipe, rendered), frozen_dtype(recipe), export_dtype(recipe)],
        "samples": [settings.num_samples, settings.max_new_tokens, *in_training],
    }
    keys = train.keys(inputs, reference, recipe.train)
    request = TrainRequest(
        rendered=rendered,
        reference=reference,
        model=model,
        settings=recipe.model,
        train=recipe.train,
        on_the_fly=on_the_fly(recipe, rendered),
        frozen_dtype=frozen_dtype(recipe),
        export_dtype=export_dtype(recipe),
        samples=settings.num_samples,
        max_new_tokens=settings.max_new_tokens,
        prompts=prompts,
        watched=settings.infrequent_prompts,
        nltk_data=settings.nltk_data,
        evaluator=IN_TRAINING if prompts else None,
        log_path=run_dir.choose_log_path(recipe, keys.fingerprint, store_of(recipe).root),
        fingerprint=keys.fingerprint,
        lineage=keys.lineage,
        recipe=redacted(recipe),
    )
    return train.call(request, keys)


def run_fingerprint(call: StageCall[Checkpoint]) -> str:
    """The fingerprint under which a training run began: its own, or that of the run which it extends."""
    request = TrainRequest.model_validate(call.request)
    return run_dir.origin_fingerprint(request.log_path, request.lineage, request.fingerprint)


def trained_model(checkpoint: Checkpoint, base: ModelSource) -> ModelSource:
    """The final model of a run as a model to evaluate."""
    return base.model_copy(
        update={
            "path": checkpoint.path,
            "fingerprint": checkpoint.fingerprint,
            "has_weights": True,
            "margin_noise": checkpoint.margin_noise,
        }
    )


def evaluate_calls(
    recipe: Recipe, model: ModelSource, rendered: RenderedSet, reference: ReferenceSet, evaluation: EvaluationPlan
) -> tuple[StageCall[EvalResult], StageCall[SampleSet] | None, tuple[StageCall[TaskResult], ...]]:
    """One model on held-out pairs and tasks; and, with ``eval_python``, what generates its responses before."""
    answers = evaluation_plan.answer_calls(recipe, model, rendered.renderer_name, evaluation)
    generation = evaluation_plan.generate_call(recipe, model, rendered, answers)
    request = EvaluateRequest(
        model=model,
        rendered=rendered,
        reference=reference,
        answers=evaluation_plan.keyed(answers),
        evaluate=recipe.evaluate,
        train=recipe.train,
        dtype=frozen_dtype(recipe),
        samples=generation.cache_key if generation else None,
    )
    return evaluate.call(request, select_engine.configured_engine(recipe.evaluate)), generation, answers
