"""Which weights a run starts from, and which ones it is held to."""

from pathlib import Path

from dpo_core import fingerprint
from dpo_core.data import demo
from dpo_core.errors import RecipeError
from dpo_core.model import adapter
from dpo_core.model import demo as demo_model
from dpo_core.model.source import describe, locate
from dpo_core.produce import Work, fingerprint_of, produce, store
from dpo_core.recipe import Recipe
from dpo_core.records import ModelSource
from dpo_core.requests import MergeRequest


def base(recipe: Recipe) -> ModelSource:
    """The initial weights, before any warm start.

    Raises RecipeError when there is no such model.
    """
    settings = recipe.model
    if settings.load_checkpoint_path:
        path = settings.load_checkpoint_path.expanduser().resolve()
        if not path.is_dir():
            raise RecipeError(
                f"There is no checkpoint {path}.",
                "load_checkpoint_path is a model directory, as a run's final/, or one of adapters, as its adapter/.",
                "Check the path.",
            )
        if adapter.is_adapter(path):
            return merged(recipe, path)
        return describe(path, settings.model_name or str(path), trust_remote_code=settings.trust_remote_code)
    if settings.model_name is None:
        raise RecipeError(
            "No model is given.",
            "A run starts from a hub id or a local directory.",
            "Add model_name=…, or try dpo demo, which brings its own.",
        )
    if settings.model_name == "demo":
        return demo_base(recipe)
    path = locate(settings.model_name, settings.model_revision)
    return describe(path, settings.model_name, trust_remote_code=settings.trust_remote_code)


def merged(recipe: Recipe, path: Path) -> ModelSource:
    """The weights that the adapters in ``path`` belong to, with the adapters added in.

    Raises RecipeError when these are not their weights.
    """
    settings = recipe.model
    adapter.check_weights(path)
    name = settings.model_name or adapter.base_name(path)
    whole = describe(locate(name, settings.model_revision), name, trust_remote_code=settings.trust_remote_code)
    adapter.check_base(path, whole.fingerprint, name)
    depends = {"base": whole.fingerprint, "adapter": fingerprint.of_files(adapter.files(path), path)}
    request = MergeRequest(base=whole, adapter=path, name=f"{name} + {path.name}")
    return produce(recipe, Work("merge", depends, request), ModelSource).record


def demo_base(recipe: Recipe) -> ModelSource:
    """The demo's tokenizer and architecture, without weights: made here, in a second or two."""
    seed, place = recipe.train.seed, store(recipe)
    key = fingerprint_of("base", {"pairs": recipe.data.demo_pairs, "seed": seed})
    found = place.find("base", key, ModelSource)
    if found is not None:
        return found
    with place.write("base", key) as draft:
        demo_model.write_base(draft.path, demo.texts(demo.generate(recipe.data.demo_pairs, seed)))
        record = describe(draft.path, "demo", draft.final)
        draft.publish(record)
    return record


def reference_model(recipe: Recipe, model: ModelSource) -> ModelSource:
    """The explicit reference, or the weights that training starts from.

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
