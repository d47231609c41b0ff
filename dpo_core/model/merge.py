"""The merge stage: a run that starts from adapters starts from, and is held to, the weights with them added in."""

from peft import PeftModel, get_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dpo_core.cache.store import Draft
from dpo_core.errors import RecipeError
from dpo_core.model.load import broken, load_model
from dpo_core.model.locate import describe
from dpo_core.model.lora import merged, no_deprecations
from dpo_core.model.save_model import save_model
from dpo_core.render.registry import stored_renderer
from dpo_core.stages.merge import MergeRequest


def run(request: MergeRequest, draft: Draft) -> None:
    """Add the adapters into their base, in float32; publish the whole model as a ModelSource."""
    base, path = request.base, draft.path / "model"
    model = load_model(base.path, trust_remote_code=base.trust_remote_code)
    whole = merged(adapted(model, request))
    save_model(whole, base.path, stored_renderer(request.adapter) or stored_renderer(base.path), path)
    draft.publish(describe(path, request.name, draft.final / "model", base.trust_remote_code))


def adapted(model: PreTrainedModel, request: MergeRequest) -> PeftModel:
    """The base with the adapters on it.

    Raises RecipeError when they do not fit, or are broken.
    """
    try:
        with no_deprecations():
            told: PeftModel = PeftModel.from_pretrained(model, request.adapter)
        expected = set(get_peft_model_state_dict(told))
    except SafetensorError as error:
        raise broken(request.adapter, error) from error
    except (ValueError, RuntimeError) as error:
        raise misfit(request, str(error).splitlines()[0]) from error
    missing = expected ^ set(load_peft_weights(str(request.adapter), device="cpu"))
    if missing:
        raise misfit(request, f"{len(missing)} tensors on one side only, as {min(missing)}")
    return told


def misfit(request: MergeRequest, why: str) -> RecipeError:
    """Adapters of another model."""
    return RecipeError(
        f"The adapters in {request.adapter} do not fit {request.base.name}: {why}.",
        "Adapters are added into the weights they were trained on.",
        "Give that model as model_name=….",
    )
