"""A token budget that memory decided, noted while it is tried: what a process leaves behind that memory ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpo_core import durable, host_memory
from dpo_core.errors import DiedError, OutOfMemoryError, TrainingError
from dpo_core.train.budget import LEAST, halved

NOTE = "budget_attempt.json"


@dataclass
class Attempt:
    """The note, which is there from the first step's beginning to the end of the process, however it ends but by
    being killed. ``path`` None: a budget that the recipe gives, of which nothing is noted."""

    path: Path | None
    tokens: int

    def note(self, proven: bool = False, ran_out: bool = False) -> None:
        """Write what is known: that a whole step has fitted, or that memory ran out."""
        if self.path is not None:
            told: dict[str, object] = {"token_budget": self.tokens, "proven": proven, "ran_out": ran_out}
            told |= {"boot": host_memory.boot(), "oom_kills": host_memory.oom_kills()}
            durable.write_text(self.path, json.dumps(told))


@contextmanager
def attempted(path: Path | None, tokens: int) -> Iterator[Attempt]:
    """Try a budget inside the block.

    Raises DiedError in place of OutOfMemoryError where the budget was found by memory: the next try takes half.
    """
    attempt = Attempt(path, tokens)
    attempt.note()
    try:
        yield attempt
    except OutOfMemoryError as error:
        if path is None:
            raise
        attempt.note(ran_out=True)
        raise DiedError(
            error.found,
            f"token_budget=auto takes half in the next try: {halved(tokens):,} tokens.",
            "Run the same command again; what was saved stands.",
        ) from error
    except BaseException:
        forget(path)
        raise
    forget(path)


def forget(path: Path | None) -> None:
    """Take the note away."""
    if path is not None:
        path.unlink(missing_ok=True)


def failed(path: Path) -> int | None:
    """The budget of a try that memory ended; None where there was none, or something else ended it.

    Raises TrainingError where it was the least budget; the next try then begins anew.
    """
    try:
        told = json.loads(path.read_text())
        tokens = int(told["token_budget"])
    except (OSError, ValueError, KeyError):
        return None
    if not of_memory(told):
        return None
    if tokens <= LEAST:
        forget(path)
        raise TrainingError(
            f"Memory ran out with token_budget={tokens}, the least that auto takes.",
            "A microbatch must fit into memory with its activations.",
            "Make memory free, lower max_length, set activation_checkpointing=true, or choose a smaller model.",
        )
    return tokens


def of_memory(told: dict[str, object]) -> bool:
    """Whether memory ended the process that left a note.

    The kernel counts those that it ends for it. Where it does not say, or the machine was started again, a try counts
    as ended by memory when not a single step had fitted.
    """
    if told["ran_out"]:
        return True
    kills, before = host_memory.oom_kills(), told["oom_kills"]
    if kills is None or not isinstance(before, int) or told["boot"] != host_memory.boot():
        return not told["proven"]
    return kills > before
