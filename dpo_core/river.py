"""The river: each stage as a function from records to a record, in a process of its own unless its output exists."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core import asking, gpus, interpreter, weights
from dpo_core.address import public
from dpo_core.data import acquire as acquisition
from dpo_core.errors import RecipeError
from dpo_core.evaluate import task_names
from dpo_core.produce import Produced, Work, fingerprint_of, produce, store, without
from dpo_core.recipe import Recipe
from dpo_core.records import (
    Checkpoint,
    EvalResult,
    ModelSource,
    PairSet,
    PromptSet,
    ReferenceSet,
    RenderedSet,
)
from dpo_core.render.registry import advise, check_name, identity, resolve
from dpo_core.requests import (
    AcquireRequest,
    EvaluateRequest,
    RenderRequest,
    ScoreRequest,
    TrainRequest,
    WarmStartRequest,
)
from dpo_core.train import order, run_dir

MOST_CACHED, BYTES_A_LOGP = 4 * 2**30, 4


@dataclass(frozen=True)
class EvaluationInputs:
    """What every model of a run is measured on."""

    rendered: RenderedSet
    reference: ReferenceSet
    asked: asking.Questions


def preflight(recipe: Recipe) -> None:
    """Refuse now what would fail later: names, files, hubs and directories, before any work is done."""
    if recipe.render.renderer_name:
        check_name(recipe.render.renderer_name)
    run_dir.settle(recipe)
    acquisition.content(acquisition.pin(recipe.data), recipe.data)
    task_names.settle(recipe.evaluate.tasks)
    asking.check_engine(recipe)
    base = weights.base(recipe)
    interpreter.check_module(recipe.evaluate, resolve(recipe.render.renderer_name, base.name, base.path))
    check_machine(recipe, base)
    asking.prompts_source(recipe)


def check_machine(recipe: Recipe, model: ModelSource) -> None:
    """Refuse a GPU that cannot do the job; say why training is on the CPU where one might expect a GPU, and who holds
    the memory that it will need."""
    files = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    # At least: weights that train are float32, with a gradient and two moments; frozen ones may be half as large.
    needed = 4 * files if recipe.model.lora_rank == 0 else files // 2
    gpus.check(recipe.train.precision, needed)
    for line in (gpus.why_on_cpu(), gpus.shortage(needed)):
        if line is not None:
            print(f"device: {line.rstrip('.')}.", flush=True)


def acquire(recipe: Recipe) -> Produced[PairSet]:
    """The preferences, checked and split."""
    source = acquisition.pin(recipe.data)
    seed = recipe.train.seed if source == "demo" else 0
    depends = {
        "content": acquisition.content(source, recipe.data),
        "data": without(recipe.data, "dataset", "data_path", "test_path"),
    }
    request = AcquireRequest(data=recipe.data, source=source, seed=seed)
    return produce(recipe, Work("acquire", depends | {"seed": seed}, request), PairSet)


def render(recipe: Recipe, pairs: PairSet, model: ModelSource) -> Produced[RenderedSet]:
    """Token ids of every pair."""
    advise(recipe.render.renderer_name, model.name, model.path)
    name = resolve(recipe.render.renderer_name, model.name, model.path)
    depends = {
        "pairs": pairs.fingerprint,
        "tokenizer": model.tokenizer_fingerprint,
        "renderer": identity(name),
        "render": without(recipe.render, "renderer_name"),
    }
    settings = recipe.render.model_copy(update={"renderer_name": name})
    return produce(
        recipe, Work("render", depends, RenderRequest(pairs=pairs, model=model, render=settings)), RenderedSet
    )


def warm_start(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ModelSource]:
    """The model after a light supervised phase; the model itself when there is none.

    Its key does not name ``token_budget``: a batch's gradient is the same, up to rounding, however it is split into
    microbatches, and ``auto`` finds another budget whenever other memory is free.
    """
    if not recipe.warm_start.sft_steps:
        if not model.has_weights:
            raise RecipeError(
                f"{model.path} holds no weights.", "A model without weights needs a warm start.", "Set sft_steps."
            )
        return Produced(model, True)
    train = recipe.train
    request = WarmStartRequest(
        rendered=rendered,
        model=model,
        warm_start=recipe.warm_start,
        train=train,
    )
    depends = {
        "rendered": rendered.fingerprint,
        "model": model.fingerprint,
        "settings": without(recipe.warm_start),
        "train": [train.seed, train.precision, train.layout],
    }
    return produce(recipe, Work("warm_start", depends, request), ModelSource)


def score_reference(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ReferenceSet]:
    """The reference's log-probabilities of every completion that the run will see, and of the test split's.

    Runs that see other pairs share what is stored under their ``base_key``; only missing pairs are scored.
    """
    reference = weights.reference_model(recipe, model)
    train = recipe.train
    order.total_steps(rendered.train_pairs, train)
    shared = {
        "rendered": rendered.fingerprint,
        "model": reference.fingerprint,
        "numerics": [train.precision, train.layout, frozen_dtype(recipe)],
    }
    needed = None if on_the_fly(recipe, rendered) else order.needed(rendered.train_pairs, train)
    request = ScoreRequest(
        rendered=rendered,
        model=reference,
        train=train,
        score_train=needed is not None,
        frozen_dtype=frozen_dtype(recipe),
        base_key=fingerprint_of("score_reference", shared),
    )
    return produce(recipe, Work("score_reference", shared | {"needed": needed}, request), ReferenceSet)


def on_the_fly(recipe: Recipe, rendered: RenderedSet) -> bool:
    """Whether the reference is asked in every step instead of scored once.

    ``auto``: when no pair comes twice and the stored log-probabilities might take more than MOST_CACHED bytes.
    """
    train = recipe.train
    if train.reference_mode != "auto":
        return train.reference_mode == "on_the_fly"
    return train.num_epochs == 1 and rendered.tokens * BYTES_A_LOGP > MOST_CACHED


def frozen_dtype(recipe: Recipe) -> str:
    """The type of weights that LoRA leaves as they are; weights that train are float32 always.

    Everything is measured in it, base and exported model alike: a difference of types would count as one of models.
    """
    halved = recipe.model.lora_rank and recipe.train.precision == "bf16" and recipe.model.export_dtype != "float32"
    return "bfloat16" if halved else "float32"


def export_dtype(recipe: Recipe) -> str:
    """The type of the final model's weights: the recipe's, else that which they are trained and measured in."""
    wanted = recipe.model.export_dtype
    return frozen_dtype(recipe) if wanted == "auto" else wanted


def alone(fingerprint: str, log_path: Path) -> AbstractContextManager[None]:
    """Nobody follows the training run."""
    return nullcontext()


def train(
    recipe: Recipe,
    rendered: RenderedSet,
    reference: ReferenceSet,
    model: ModelSource,
    followed: Callable[[str, Path], AbstractContextManager[None]] = alone,
) -> Produced[Checkpoint]:
    """The policy, optimised; ``log_path`` holds its journal and checkpoints.

    ``followed`` gives, from the run's fingerprint and ``log_path``, the context in which it trains.
    """
    reads = {
        "rendered": rendered.fingerprint,
        "model": model.fingerprint,
        "lora": [recipe.model.lora_rank, recipe.model.lora_alpha, recipe.model.lora_targets],
        "numerics": [on_the_fly(recipe, rendered), frozen_dtype(recipe), export_dtype(recipe)],
        "samples": [recipe.evaluate.num_samples, recipe.evaluate.max_new_tokens, *watched(recipe).values()],
    }
    settings = without(recipe.train, *run_dir.ELSEWHERE)
    depends = reads | {"reference": reference.fingerprint, "train": settings}
    # A longer run may need more of the reference scored: it is the same run if the reference is the same model.
    settings = {name: value for name, value in settings.items() if name not in run_dir.LENGTHS}
    key = fingerprint_of("train", depends)
    request = TrainRequest(
        rendered=rendered,
        reference=reference,
        model=model,
        settings=recipe.model,
        train=recipe.train,
        on_the_fly=on_the_fly(recipe, rendered),
        frozen_dtype=frozen_dtype(recipe),
        export_dtype=export_dtype(recipe),
        samples=recipe.evaluate.num_samples,
        max_new_tokens=recipe.evaluate.max_new_tokens,
        prompts=watched_prompts(recipe),
        watched=recipe.evaluate.infrequent_prompts,
        nltk_data=recipe.evaluate.nltk_data,
        log_path=run_dir.choose(recipe, key, store(recipe).root),
        fingerprint=key,
        lineage=fingerprint_of("train", reads | {"reference": reference.model.fingerprint, "train": settings}),
        recipe=public(recipe),
    )
    known_as = run_dir.origin(request.log_path, request.lineage, key)
    return produce(recipe, Work("train", depends, request), Checkpoint, followed(known_as, request.log_path))


def watched_prompts(recipe: Recipe) -> PromptSet | None:
    """The prompts that the policy is asked during training, None where it is asked none."""
    produced = asking.acquire_prompts(recipe) if recipe.evaluate.infrequent_prompts else None
    return produced.record if produced else None


def watched(recipe: Recipe) -> dict[str, Any]:
    """What the metrics of infrequent evaluations depend on, beside the policy; nothing where it is asked nothing."""
    prompts = watched_prompts(recipe)
    return {"prompts": prompts.fingerprint, "count": recipe.evaluate.infrequent_prompts} if prompts else {}


def trained(checkpoint: Checkpoint, base_model: ModelSource) -> ModelSource:
    """The final model of a run as a model to evaluate."""
    told = {"path": checkpoint.path, "fingerprint": checkpoint.fingerprint, "has_weights": True}
    return base_model.model_copy(update=told | {"margin_noise": checkpoint.margin_noise})


def evaluate(recipe: Recipe, model: ModelSource, inputs: EvaluationInputs) -> Produced[EvalResult]:
    """One model on held-out pairs and its answers to tasks, which are kept for whoever asks the same of it.

    With ``eval_python`` the answers are given before, in that interpreter, and held-out pairs are measured here.
    """
    settings, train = recipe.evaluate, recipe.train
    answers = asking.answers(recipe, model, inputs.rendered.renderer_name, inputs.asked)
    generation = asking.generation(recipe, model, inputs.rendered, answers)
    dtype = frozen_dtype(recipe)
    depends = {
        "model": model.fingerprint,
        "rendered": inputs.rendered.fingerprint,
        "reference": inputs.reference.fingerprint,
        "answers": [work.key for work in answers],
        "samples": [settings.num_samples, asking.sampling(settings)],
        "loss": [train.loss, train.dpo_beta, train.label_smoothing, train.simpo_gamma, train.rpo_alpha],
        "numerics": [train.precision, train.layout, dtype, model.margin_noise],
    }
    request = EvaluateRequest(
        model=model,
        rendered=inputs.rendered,
        reference=inputs.reference,
        answers=asking.keyed(answers),
        evaluate=settings,
        train=train,
        dtype=dtype,
        samples=generation.key if generation else None,
    )
    work = Work("evaluate", depends, request)
    if generation and store(recipe).find(work.stage, work.key, EvalResult) is None:
        asking.generate(recipe, generation, answers)
    return produce(recipe, work, EvalResult)
