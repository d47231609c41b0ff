"""Official IFEval checkers: strict and loose verdicts on a response to a prompt with verifiable instructions.

Zhou et al., Instruction-Following Evaluation for Large Language Models, arXiv 2311.07911. The checkers are Google's, as
shipped in lm-eval; the strict and loose rules are those of Google's ``evaluation_lib``.
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

# langdetect draws random samples: verdicts on lowercase and uppercase English are repeatable only with a fixed seed.
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
    def _drop_none(cls, arguments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # A table of all rows has a column for every argument, with None in rows without it.
        return [{name: value for name, value in given.items() if value is not None} for given in arguments]


ROW = TypeAdapter(IFEvalPrompt)


@dataclass(frozen=True, slots=True)
class FollowedInstructions:
    """Verdicts on each instruction, in the row's order, under the strict and the loose rule."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def score(row: IFEvalPrompt, response: str) -> FollowedInstructions:
    """Score one response. A pure function: the same row and response always get the same verdicts.

    Strict: the response itself passes. Loose: any of its eight variants passes. An empty text never passes.
    Raises LookupError when a checker needs NLTK's sentence splitter and its data are not installed, and ValueError or
    TypeError when the row's arguments do not fit the checker.
    """
    with seeded_random(row.key):
        checkers = [build_checker(row, index) for index in range(len(row.instruction_id_list))]
    loose = loose_variants(response)
    return FollowedInstructions(
        strict=tuple(follows(checker, response) for checker in checkers),
        loose=tuple(any(follows(checker, variant) for variant in loose) for checker in checkers),
    )


def loose_variants(response: str) -> list[str]:
    """Eight texts that the loose rule checks: the response, without its first line, without its last, without both; and
    each of these without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for variant in (response, *cut) for text in (variant, variant.replace("*", ""))]


def follows(checker: Any, text: str) -> bool:
    """Whether a text is not empty and passes the checker."""
    return bool(text.strip()) and bool(checker.check_following(text))


def build_checker(row: IFEvalPrompt, index: int) -> Any:
    """The official checker of the row's instruction at ``index``, with its arguments."""
    name = row.instruction_id_list[index]
    checker = official_checkers()[name](name)
    checker.build_description(**row.kwargs[index])
    arguments = checker.get_instruction_args()
    if arguments and "prompt" in arguments:
        checker.build_description(prompt=row.prompt)
    return checker


def set_nltk_data(directory: Path | None) -> None:
    """Put a directory first in the search path of NLTK's data; None leaves the path as it is."""
    if directory is not None:
        import nltk  # lazy: imported with the checkers, and needed here only for the setting

        nltk.data.path.insert(0, str(directory.expanduser().resolve()))


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seed Python's global random generator inside, and restore it: checkers draw missing arguments from it."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@cache
def official_checkers() -> dict[str, Any]:
    """The official checker classes by instruction id.

    lm-eval downloads NLTK's data at import, except on ranks other than 0 of a distributed job. LOCAL_RANK is set to 1
    during the import, so that nothing is downloaded unasked; the prompts stage reports missing data.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        # Lazy: lm-eval costs 3 s, which only the evaluation needs.
        with gc_tuning.paused():
            from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    finally:
        os.environ.pop("LOCAL_RANK") if rank is None else os.environ.update(LOCAL_RANK=rank)
    return dict(INSTRUCTION_DICT)
