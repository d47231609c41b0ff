"""Base model: the weights that a run starts from, and the reference that it is held to."""

from dataclasses import dataclass, replace
from pathlib import Path

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Store
from dpo_core.config.recipe import ModelSettings, Recipe
from dpo_core.errors import RecipeError
from dpo_core.model import adapter
from dpo_core.model.locate import check_directory, check_exists, describe, locate
from dpo_core.process.run_stage import run_stage
from dpo_core.records import ModelSource
from dpo_core.render.registry import resolve_renderer, stored_renderer
from dpo_core.stages import demo_base, merge
from dpo_core.system import gpus, python_environment

DEMO = "demo"


@dataclass(frozen=True)
class InitialModel:
    """Where a run's initial weights are.

    ``weights``: directory of the model, None where it is not on this disk yet (the hub's and the demo's).
    ``adapter``: directory of LoRA adapters that are merged into it, None for none.
    """

    name: str
    weights: Path | None
    adapter: Path | None = None

    @property
    def is_demo(self) -> bool:
        """Whether it is the built-in model, which the stage ``base`` makes."""
        return self.name == DEMO and self.weights is None

    @property
    def merged_name(self) -> str:
        """The model's name, with the name of the adapters that are merged into it."""
        return f"{self.name} + {self.adapter.name}" if self.adapter else self.name


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
        return InitialModel(DEMO, None)
    return InitialModel(settings.model_name, check_weights(settings.model_name, settings.model_revision))


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
        return InitialModel(name, check_weights(name, settings.model_revision), path)
    check_directory(path)
    return InitialModel(settings.model_name or str(path), path)


def check_weights(name: str, revision: str | None) -> Path | None:
    """The local directory of a model, None for one on the hub.

    Raises RecipeError when there is neither, or the directory is no model that can be loaded.
    """
    path = check_exists(name, revision)
    if path is not None:
        check_directory(path)
    return path


def load(recipe: Recipe, base: InitialModel, store: Store) -> ModelSource:
    """The initial weights as a record: downloaded, generated or merged where they are not on this disk.

    Raises RecipeError for adapters of other weights, and what preflight raises for a model that it could not see.
    """
    if base.is_demo:
        return run_stage(store, demo_base.call(recipe.data.demo_pairs, recipe.train.seed)).record
    path = base.weights or locate(base.name, recipe.model.model_revision)
    if base.weights is None:
        check_renderer_and_memory(recipe, replace(base, weights=path))
    model = describe(path, base.name, trust_remote_code=recipe.model.trust_remote_code)
    if base.adapter is None:
        return model
    adapter.check_base_fingerprint(base.adapter, model.fingerprint, base.name)
    adapter_fingerprint = fingerprint.of_files(adapter.adapter_files(base.adapter), base.adapter)
    return run_stage(store, merge.call(model, base.adapter, adapter_fingerprint, base.merged_name)).record


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


def check_renderer_and_memory(recipe: Recipe, base: InitialModel) -> None:
    """Raises RecipeError for a model without a renderer, or one that the GPU cannot train."""
    renderer, directory = recipe.render.renderer_name, base.weights
    if directory is not None:
        # Merged adapters keep the renderer that they record, or else their base's.
        recorded = base.adapter if base.adapter and stored_renderer(base.adapter) else directory
        renderer = resolve_renderer(renderer, base.merged_name, recorded)
    if renderer is not None:
        python_environment.check_module(recipe.evaluate, renderer)
    check_gpu(recipe, directory)


def check_gpu(recipe: Recipe, weights: Path | None) -> None:
    """Raises RecipeError for a GPU that cannot do the job.

    Prints why training runs on the CPU where one might expect a GPU, and which processes hold memory that it needs.
    """
    size = sum(file.stat().st_size for file in weights.glob("*.safetensors")) if weights else 0
    # At least: weights that train are float32, with a gradient and two moments; frozen ones may be half as large.
    needed = 4 * size if recipe.model.lora_rank == 0 else size // 2
    gpus.check_gpu(recipe.train.precision, needed)
    for line in (gpus.why_on_cpu(), gpus.memory_shortage(needed)):
        if line is not None:
            print(f"device: {line.rstrip('.')}.", flush=True)
