"""Stage ``render``: token ids of every pair."""

from dpo_core.config.recipe import RenderSettings
from dpo_core.records import ModelSource, PairSet, Record, RenderedSet
from dpo_core.stages.stage import Stage, StageCall, settings_in_key


class RenderRequest(Record):
    """Tokenize the pairs with the model's tokenizer; ``render`` names the renderer."""

    pairs: PairSet
    model: ModelSource
    render: RenderSettings


STAGE = Stage("render", 5, RenderRequest, RenderedSet, "dpo_core.render.render", is_step=True)


def call(pairs: PairSet, model: ModelSource, render: RenderSettings, renderer: object) -> StageCall[RenderedSet]:
    """``renderer``: what identifies the renderer, its code included."""
    inputs = {
        "pairs": pairs.fingerprint,
        "tokenizer": model.tokenizer_fingerprint,
        "renderer": renderer,
        "render": settings_in_key(render, "renderer_name"),
    }
    return StageCall(STAGE, inputs, RenderRequest(pairs=pairs, model=model, render=render))
