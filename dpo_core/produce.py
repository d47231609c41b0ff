"""An output is found, whole, under the fingerprint of what it depends on; or else it is made."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dpo_core import fingerprint
from dpo_core.launch import launch
from dpo_core.recipe import Recipe, Section
from dpo_core.records import Record
from dpo_core.store import Store

R = TypeVar("R", bound=Record)
T_co = TypeVar("T_co", covariant=True)

NOTHING = nullcontext()


def at_once(stage: str) -> AbstractContextManager[None]:
    """No stage waits for its turn."""
    return nullcontext()


# How a stage that has to be made waits for its turn: set by who shares hardware between runs.
TURN: ContextVar[Callable[[str], AbstractContextManager[None]]] = ContextVar("turn", default=at_once)

# The data version of each stage's code: raise one when the same input would give another output.
VERSIONS = {
    "base": 2,
    "merge": 1,
    "acquire": 4,
    "prompts": 2,
    "render": 5,
    "warm_start": 2,
    "score_reference": 3,
    "train": 3,
    "evaluate": 7,
    "answer": 3,
    "generate": 1,
    "imports": 1,
    "judge": 1,
}


@dataclass(frozen=True)
class Produced(Generic[T_co]):
    """A stage's record, and whether it was already there."""

    record: T_co
    cached: bool


@dataclass(frozen=True)
class Work:
    """One stage to be done: what its output depends on, and what its process is told.

    ``python``: the interpreter of that process, None for this one.
    """

    stage: str
    depends: dict[str, Any]
    request: Record
    python: Path | None = None

    @property
    def key(self) -> str:
        """The fingerprint that names the output."""
        return fingerprint_of(self.stage, self.depends)


def fingerprint_of(stage: str, depends: dict[str, Any]) -> str:
    """The name of a stage's output: the fingerprint of what it depends on and of its code's data version."""
    return fingerprint.of_value({"stage": stage, "version": VERSIONS[stage], **depends})


def store(recipe: Recipe) -> Store:
    """The cache of this recipe's runs."""
    return Store(recipe.track.runs_dir / "store")


def produce(
    recipe: Recipe, work: Work, kind: type[R], meanwhile: AbstractContextManager[None] = NOTHING
) -> Produced[R]:
    """The output of a stage: found whole, or made now, in its turn and inside ``meanwhile``."""
    found = store(recipe).find(work.stage, work.key, kind)
    return Produced(found, True) if found is not None else make(recipe, work, kind, meanwhile)


def make(recipe: Recipe, work: Work, kind: type[R], meanwhile: AbstractContextManager[None] = NOTHING) -> Produced[R]:
    """The output of a stage, made now in its turn and inside ``meanwhile``, in place of one that is there."""
    place = store(recipe)
    with TURN.get()(work.stage), meanwhile:
        launch(work.stage, work.key, work.request, place, work.python)
    made = place.find(work.stage, work.key, kind)
    if made is None:
        raise RuntimeError(f"stage {work.stage} ended well but left no whole output")
    return Produced(made, False)


def without(section: Section, *leaves: str) -> dict[str, Any]:
    """A section's settings but for some that do not change the output."""
    told: dict[str, Any] = json.loads(section.model_dump_json(exclude=set(leaves)))
    return told
