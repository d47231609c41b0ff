"""IFEval's scoring core: a prompt with verifiable instructions, a response, and the verdict of the official checkers.

Zhou et al., Instruction-Following Evaluation for Large Language Models, arXiv 2311.07911. The checkers are Google's, as
lm-eval carries them; the strict and loose rules are those of Google's ``evaluation_lib``.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import langdetect
from pydantic import Field, StrictInt, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass as validated

from dpo_core.system import gc_tuning

# langdetect samples; the official verdicts on lowercase and uppercase English are only repeatable with a fixed seed.
langdetect.DetectorFactory.seed = 0


@validated(frozen=True)
class IFEvalPrompt:
    """One IFEval prompt: ``kwargs`` holds the arguments of each instruction, in order."""

    key: StrictInt
    prompt: Annotated[str, Field(min_length=1)]
    instruction_id_list: Annotated[list[str], Field(min_length=1)]
    kwargs: list[dict[str, Any]]

    @field_validator("kwargs")
    @classmethod
    def _only_given(cls, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # A table of all rows has a column for every argument, and None where a row has none.
        return [{name: value for name, value in one.items() if value is not None} for one in told]


ROW = TypeAdapter(IFEvalPrompt)


@dataclass(frozen=True, slots=True)
class FollowedInstructions:
    """Which instructions, in the row's order, the response follows as it stands and under the loose rule."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def score(row: IFEvalPrompt, response: str) -> FollowedInstructions:
    """Judge one response. A pure function: the same row and response get the same verdict everywhere.

    Strict: the response itself. Loose: any of eight variants of it. An empty text follows nothing.
    Raises LookupError when a checker needs NLTK's sentence splitter and its data are not installed, and ValueError or
    TypeError when the row's arguments are not the checker's.
    """
    with drawing_from(row.key):
        checkers = [checker(row, place) for place in range(len(row.instruction_id_list))]
    loose = variants(response)
    return FollowedInstructions(
        strict=tuple(follows(one, response) for one in checkers),
        loose=tuple(any(follows(one, variant) for variant in loose) for one in checkers),
    )


def variants(response: str) -> list[str]:
    """The texts that the loose rule accepts: without the first line, the last, both; each also without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for kept in (response, *cut) for text in (kept, kept.replace("*", ""))]


def follows(checker: Any, text: str) -> bool:
    """Whether a text is not empty and passes the checker."""
    return bool(text.strip()) and bool(checker.check_following(text))


def checker(row: IFEvalPrompt, place: int) -> Any:
    """The official checker of one of the row's instructions, with its arguments."""
    name = row.instruction_id_list[place]
    made = registry()[name](name)
    made.build_description(**row.kwargs[place])
    arguments = made.get_instruction_args()
    if arguments and "prompt" in arguments:
        made.build_description(prompt=row.prompt)
    return made


def sentences_from(place: Path | None) -> None:
    """Let the checkers look for NLTK's sentence splitter in this directory first."""
    if place is not None:
        import nltk  # lazy: the checkers bring it in, and only a setting asks for it here

        nltk.data.path.insert(0, str(place.expanduser().resolve()))


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed the global generator inside and restore it: a checker draws from it the arguments that a row leaves out."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@cache
def registry() -> dict[str, Any]:
    """The official checkers by instruction id.

    lm-eval downloads NLTK's data as it is imported, except on ranks other than 0 of a distributed job: its own switch,
    used here so that nothing is fetched behind the user's back. The prompts stage reports data that are missing.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        # Lazy: 3 s of lm-eval's task machinery, paid by the evaluation alone.
        with gc_tuning.paused():
            from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    finally:
        os.environ.pop("LOCAL_RANK") if rank is None else os.environ.update(LOCAL_RANK=rank)
    return dict(INSTRUCTION_DICT)
