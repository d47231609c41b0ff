"""Stage ``acquire``: preference pairs, checked and split."""

from dpo_core.config.recipe import DataSettings
from dpo_core.records import PairSet, Record
from dpo_core.stages.stage import Stage, StageCall, settings_in_key


class AcquireRequest(Record):
    """Read, check and split the preferences. ``source``: demo, a path, a class, or ``hub id@commit``."""

    data: DataSettings
    source: str
    seed: int


STAGE = Stage("acquire", 4, AcquireRequest, PairSet, "dpo_core.data.acquire", is_step=True)


def call(data: DataSettings, source: str, content: dict[str, object], seed: int) -> StageCall[PairSet]:
    """``content``: what identifies the rows of the source; ``seed`` matters to the built-in demo only."""
    seed = seed if source == "demo" else 0
    inputs = {"content": content, "data": settings_in_key(data, "dataset", "data_path", "test_path"), "seed": seed}
    return StageCall(STAGE, inputs, AcquireRequest(data=data, source=source, seed=seed))
