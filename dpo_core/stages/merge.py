"""Stage ``merge``: LoRA adapters merged into their base model, for a run that starts from them."""

from pathlib import Path

from dpo_core.records import ModelSource, Record
from dpo_core.stages.stage import Stage, StageCall


class MergeRequest(Record):
    """Merge the adapters in a directory into ``base``; the merged model is called ``name``."""

    base: ModelSource
    adapter: Path
    name: str


STAGE = Stage("merge", 1, MergeRequest, ModelSource, "dpo_core.model.merge")


def call(base: ModelSource, adapter: Path, adapter_fingerprint: str, name: str) -> StageCall[ModelSource]:
    """Adapters by their directory and the fingerprint of its files."""
    inputs = {"base": base.fingerprint, "adapter": adapter_fingerprint}
    return StageCall(STAGE, inputs, MergeRequest(base=base, adapter=adapter, name=name))
