"""Stage ``warm_start``: a short supervised phase before DPO."""

from dpo_core.config.recipe import TrainSettings, WarmStartSettings
from dpo_core.records import ModelSource, Record, RenderedSet
from dpo_core.stages.stage import Stage, StageCall, settings_in_key


class WarmStartRequest(Record):
    """Fine-tune the model on completions, before it learns from preferences."""

    rendered: RenderedSet
    model: ModelSource
    warm_start: WarmStartSettings
    train: TrainSettings


STAGE = Stage(
    "warm_start",
    2,
    WarmStartRequest,
    ModelSource,
    "dpo_core.train.warm_start",
    is_step=True,
    uses_gpu=True,
    token_budget_decides=True,
    out_of_memory_remedy="Make memory free, lower max_length",
)


def call(request: WarmStartRequest) -> StageCall[ModelSource]:
    """The cache key leaves ``token_budget`` out.

    A batch's gradient is the same, up to rounding, however it is split into microbatches, and ``auto`` finds another
    budget whenever other memory is free.
    """
    train = request.train
    inputs = {
        "rendered": request.rendered.fingerprint,
        "model": request.model.fingerprint,
        "settings": settings_in_key(request.warm_start),
        "train": [train.seed, train.precision, train.layout],
    }
    return StageCall(STAGE, inputs, request)
