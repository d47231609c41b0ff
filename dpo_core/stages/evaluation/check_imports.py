"""Stage ``imports``: whether everything that generation needs can be imported in another interpreter."""

from pathlib import Path
from typing import Any

from dpo_core.config.recipe import EngineName
from dpo_core.records import Imports, Record
from dpo_core.stages.stage import Stage, StageCall


class ImportsRequest(Record):
    """Import what generation with this engine needs."""

    engine: EngineName


STAGE = Stage("imports", 1, ImportsRequest, Imports, "dpo_core.evaluate.inspect.check_imports")


def call(python: Path, found: dict[str, Any], engine: EngineName) -> StageCall[Imports]:
    """``found``: versions of Python and of the packages in that interpreter's environment."""
    inputs = {"python": str(python), "told": found, "engine": engine}
    return StageCall(STAGE, inputs, ImportsRequest(engine=engine), python)
