"""Merge stage: LoRA adapters merged into their base, which becomes the start and the reference of a run."""

from peft import PeftModel, get_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dpo_core.cache.store import Draft
from dpo_core.errors import RecipeError
from dpo_core.model.load import broken_weights_error, load_model
from dpo_core.model.locate import describe
from dpo_core.model.lora import ignore_deprecations, merge_adapters
from dpo_core.model.save_model import save_model
from dpo_core.render.registry import stored_renderer
from dpo_core.stages.merge import MergeRequest


def run(request: MergeRequest, draft: Draft) -> None:
    """Merge the adapters into their base, in float32; publish the full model as a ModelSource."""
    base, path = request.base, draft.path / "model"
    model = load_model(base.path, trust_remote_code=base.trust_remote_code)
    merged = merge_adapters(load_adapters(model, request))
    save_model(merged, base.path, stored_renderer(request.adapter) or stored_renderer(base.path), path)
    draft.publish(describe(path, request.name, draft.final / "model", base.trust_remote_code))


def load_adapters(model: PreTrainedModel, request: MergeRequest) -> PeftModel:
    """The base model with the adapters loaded, not merged.

    Raises RecipeError when the adapters do not fit the model, or are broken.
    """
    try:
        with ignore_deprecations():
            adapted: PeftModel = PeftModel.from_pretrained(model, request.adapter)
        expected = set(get_peft_model_state_dict(adapted))
    except SafetensorError as error:
        raise broken_weights_error(request.adapter, error) from error
    except (ValueError, RuntimeError) as error:
        raise misfit_error(request, str(error).splitlines()[0]) from error
    unmatched = expected ^ set(load_peft_weights(str(request.adapter), device="cpu"))
    if unmatched:
        raise misfit_error(request, f"{len(unmatched)} tensors on one side only, such as {min(unmatched)}")
    return adapted


def misfit_error(request: MergeRequest, reason: str) -> RecipeError:
    """The error for adapters of another model."""
    return RecipeError(
        f"The adapters in {request.adapter} do not fit {request.base.name}: {reason}.",
        "Adapters are added into the weights they were trained on.",
        "Give that model as model_name=….",
    )
