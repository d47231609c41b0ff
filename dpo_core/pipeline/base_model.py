"""Base model: the weights that a run starts from, and the reference that it is held to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Store
from dpo_core.config.recipe import ModelSettings, Recipe
from dpo_core.errors import RecipeError
from dpo_core.model import adapter
from dpo_core.model.locate import check_directory, check_exists, describe, locate
from dpo_core.process.run_stage import run_stage
from dpo_core.records import ModelSource
from dpo_core.render.registry import resolve_renderer
from dpo_core.stages import demo_base, merge
from dpo_core.system import gpus, python_environment

DEMO = "demo"


@dataclass(frozen=True)
class InitialModel:
    """Where a run's initial weights are. ``path``: their directory, None where it is not on this disk yet."""

    kind: Literal["demo", "directory", "adapter", "hub"]
    name: str
    path: Path | None


def find(recipe: Recipe) -> InitialModel:
    """The initial weights, before any warm start: looked for, neither downloaded nor read.

    Raises RecipeError when there is no such model.
    """
    settings = recipe.model
    if settings.load_checkpoint_path:
        return find_checkpoint(settings, settings.load_checkpoint_path.expanduser().resolve())
    if settings.model_name is None:
        raise RecipeError(
            "No model is given.",
            "A run starts from a hub id or a local directory.",
            "Add model_name=…, or try dpo demo, which brings its own.",
        )
    if settings.reference_model_name:
        check_exists(settings.reference_model_name, None)
    if settings.model_name == DEMO:
        return InitialModel("demo", DEMO, None)
    path = check_exists(settings.model_name, settings.model_revision)
    if path is None:
        return InitialModel("hub", settings.model_name, None)
    check_directory(path)
    return InitialModel("directory", settings.model_name, path)


def find_checkpoint(settings: ModelSettings, path: Path) -> InitialModel:
    """The model or the adapters in ``load_checkpoint_path``.

    Raises RecipeError when there are none.
    """
    if not path.is_dir():
        raise RecipeError(
            f"There is no checkpoint {path}.",
            "load_checkpoint_path is a model directory, as a run's final/, or one of adapters, as its adapter/.",
            "Check the path.",
        )
    if adapter.is_adapter(path):
        adapter.check_weights(path)
        name = settings.model_name or adapter.base_model_name(path)
        check_exists(name, settings.model_revision)
        return InitialModel("adapter", name, path)
    check_directory(path)
    return InitialModel("directory", settings.model_name or str(path), path)


def load(recipe: Recipe, base: InitialModel, store: Store) -> ModelSource:
    """The initial weights as a record: downloaded, generated or merged where they are not on this disk.

    Raises RecipeError for adapters of other weights, and what preflight raises for a model that it could not see.
    """
    settings = recipe.model
    if base.kind == "demo":
        return run_stage(store, demo_base.call(recipe.data.demo_pairs, recipe.train.seed)).record
    if base.kind == "adapter":
        return merge_adapter(recipe, base, store)
    path = base.path or locate(base.name, settings.model_revision)
    model = describe(path, base.name, trust_remote_code=settings.trust_remote_code)
    if base.path is None:
        check_renderer_and_memory(recipe, model.name, model.path)
    return model


def merge_adapter(recipe: Recipe, base: InitialModel, store: Store) -> ModelSource:
    """The weights that the adapters belong to, with the adapters merged into them.

    Raises RecipeError when these are not their weights.
    """
    assert base.path is not None
    settings, path = recipe.model, base.path
    whole = describe(
        locate(base.name, settings.model_revision), base.name, trust_remote_code=settings.trust_remote_code
    )
    adapter.check_base_fingerprint(path, whole.fingerprint, base.name)
    adapter_fingerprint = fingerprint.of_files(adapter.adapter_files(path), path)
    return run_stage(store, merge.call(whole, path, adapter_fingerprint, f"{base.name} + {path.name}")).record


def reference_model(recipe: Recipe, model: ModelSource) -> ModelSource:
    """The reference: ``reference_model_name``, or the weights that training starts from.

    Raises RecipeError when the reference has another tokenizer.
    """
    name = recipe.model.reference_model_name
    if name is None:
        return model
    reference = describe(locate(name, None), name, trust_remote_code=recipe.model.trust_remote_code)
    if reference.tokenizer_fingerprint != model.tokenizer_fingerprint:
        raise RecipeError(
            f"The reference {name} has another tokenizer than {model.name}.",
            "Policy and reference must read the same tokens.",
            "Choose a reference of the same family, or leave reference_model_name out.",
        )
    return reference


def check_renderer_and_memory(recipe: Recipe, name: str, path: Path) -> None:
    """Raises RecipeError for a model without a renderer, or one that the GPU cannot train."""
    # The renderer of merged adapters is resolved from their own directory, which notes it, or from their base's.
    name, path = adapter.renderer_source(path, name)
    python_environment.check_module(recipe.evaluate, resolve_renderer(recipe.render.renderer_name, name, path))
    check_gpu(recipe, path)


def check_gpu(recipe: Recipe, model: Path) -> None:
    """Raises RecipeError for a GPU that cannot do the job.

    Prints why training runs on the CPU where one might expect a GPU, and which processes hold memory that it needs.
    """
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    # At least: weights that train are float32, with a gradient and two moments; frozen ones may be half as large.
    needed = 4 * size if recipe.model.lora_rank == 0 else size // 2
    gpus.check_gpu(recipe.train.precision, needed)
    for line in (gpus.why_on_cpu(), gpus.memory_shortage(needed)):
        if line is not None:
            print(f"device: {line.rstrip('.')}.", flush=True)
