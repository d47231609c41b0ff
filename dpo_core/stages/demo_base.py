"""Stage ``base``: the demo's tokenizer and architecture, without weights."""

from dpo_core.records import ModelSource, Record
from dpo_core.stages.stage import Stage, StageCall


class DemoBaseRequest(Record):
    """Train the tokenizer on the text of this many generated pairs."""

    demo_pairs: int
    seed: int


STAGE = Stage("base", 2, DemoBaseRequest, ModelSource, "dpo_core.model.demo_model", has_own_process=False)


def call(demo_pairs: int, seed: int) -> StageCall[ModelSource]:
    """The demo's base model for a number of pairs and a seed."""
    inputs = {"pairs": demo_pairs, "seed": seed}
    return StageCall(STAGE, inputs, DemoBaseRequest(demo_pairs=demo_pairs, seed=seed))
