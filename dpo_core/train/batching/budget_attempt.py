"""A token budget that memory decided, noted while it is tried: what a process leaves behind that memory ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.errors import DiedError, OutOfMemoryError, TrainingError
from dpo_core.system import host_memory
from dpo_core.train.batching import budget_note
from dpo_core.train.batching.auto_token_budget import half_budget
from dpo_core.train.batching.budget_note import MIN_TOKENS, delete


@dataclass
class BudgetAttempt:
    """The note, which is there from the first step's beginning to the end of the process, however it ends but by
    being killed. ``path`` None: a budget that the recipe gives, of which nothing is noted."""

    path: Path | None
    tokens: int

    def note(self, proven: bool = False, ran_out: bool = False) -> None:
        """Write what is known: that a whole step has fitted, or that memory ran out."""
        if self.path is not None:
            budget_note.write(self.path, self.tokens, proven, ran_out)


@contextmanager
def attempt_budget(path: Path | None, tokens: int) -> Iterator[BudgetAttempt]:
    """Try a budget inside the block.

    Raises DiedError in place of OutOfMemoryError where the budget was found by memory and a smaller one helps: the
    next try takes half. Any other OutOfMemoryError passes: another try would end like this one.
    """
    attempt = BudgetAttempt(path, tokens)
    attempt.note()
    try:
        yield attempt
    except OutOfMemoryError as error:
        if path is None or not error.smaller_budget_helps or tokens <= MIN_TOKENS:
            delete(path)
            raise
        attempt.note(ran_out=True)
        raise DiedError(
            error.found,
            f"token_budget=auto takes half in the next try: {half_budget(tokens):,} tokens.",
            f"Run the same command again. If it ends like this once more: {error.remedy}",
        ) from error
    except BaseException:
        delete(path)
        raise
    delete(path)


def failed_budget(path: Path) -> int | None:
    """The budget of a try that memory ended; None where there was none, or something else ended it.

    Raises TrainingError where it was the least budget; the next try then begins anew.
    """
    told = budget_note.read(path)
    if told is None or not ended_by_memory(told):
        return None
    tokens: int = told["token_budget"]
    if tokens <= MIN_TOKENS:
        delete(path)
        raise TrainingError(
            f"Memory ran out with token_budget={tokens}, the least that auto takes.",
            "A microbatch must fit into memory with its activations.",
            "Make memory free, lower max_length, set activation_checkpointing=true, or choose a smaller model.",
        )
    return tokens


def ended_by_memory(told: dict[str, Any]) -> bool:
    """Whether memory ended the process that left a note.

    The launcher records the cause where it can (:func:`budget_note.record_cause`). Otherwise the kernel's count of
    processes killed for memory decides; it counts all processes of the machine. Without that count, or after a reboot,
    memory counts as the cause if no step had been completed.
    """
    if told["ran_out"]:
        return True
    kills, before = host_memory.oom_kills(), told["oom_kills"]
    if kills is None or not isinstance(before, int) or told["boot"] != host_memory.boot():
        return not told["proven"]
    return kills > before
