"""Stage: its definition, a call of it with its cache key, and its result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Section
from dpo_core.records import Record

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Stage(Generic[R]):
    """Definition of a stage.

    ``version``: data version of the stage's code; raise it when the same inputs would give another output.
    ``entry_point``: module whose ``run(request, draft)`` makes the output; it is imported where the stage runs.
    ``is_step``: whether ``python -m dpo_core STAGE`` can stop after it: each run has it.
    ``has_own_process``: false for a stage of a second or two that needs no torch.
    ``token_budget_decides``: whether ``token_budget`` decides how much memory it takes.
    ``out_of_memory_remedy``: what helps when memory runs out, besides a smaller model.
    """

    name: str
    version: int
    request: type[Record]
    output: type[R]
    entry_point: str
    is_step: bool = False
    uses_gpu: bool = False
    has_own_process: bool = True
    token_budget_decides: bool = False
    out_of_memory_remedy: str = "Make memory free"

    def cache_key(self, inputs: dict[str, Any]) -> str:
        """Fingerprint of everything that the output depends on: the inputs and the stage's version."""
        return fingerprint.of_value({"stage": self.name, "version": self.version, **inputs})


@dataclass(frozen=True)
class StageCall(Generic[R]):
    """A stage with what its output depends on, and the request that its process reads.

    ``python``: interpreter of that process, None for this one.
    """

    stage: Stage[R]
    inputs: dict[str, Any]
    request: Record
    python: Path | None = None

    @property
    def cache_key(self) -> str:
        """Name of the output in the store."""
        return self.stage.cache_key(self.inputs)


@dataclass(frozen=True)
class StageResult(Generic[R_co]):
    """A stage's output, and whether it was already in the store."""

    record: R_co
    cached: bool


def settings_in_key(section: Section, *excluded: str) -> dict[str, Any]:
    """A section's settings as values for a cache key, without those that do not change the output."""
    settings: dict[str, Any] = json.loads(section.model_dump_json(exclude=set(excluded)))
    return settings
