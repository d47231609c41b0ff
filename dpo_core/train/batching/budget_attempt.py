"""Attempt at an automatic token budget: a note on disk tells the next process that memory ended this one."""

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
    """A budget and the note of it, which exists while the process runs and stays only if the process is killed or runs
    out of memory. ``path`` None: the recipe gives the budget, and no note is written."""

    path: Path | None
    tokens: int

    def write(self, proven: bool = False, ran_out: bool = False) -> None:
        """Write the note. ``proven``: a complete step has fitted into memory; ``ran_out``: memory ran out."""
        if self.path is not None:
            budget_note.write(self.path, self.tokens, proven, ran_out)


@contextmanager
def attempt_budget(path: Path | None, tokens: int) -> Iterator[BudgetAttempt]:
    """Use a budget inside the block, with the note beside it.

    Raises DiedError in place of OutOfMemoryError if the budget is automatic and a smaller one helps: the next attempt
    takes half. Any other OutOfMemoryError passes, since another attempt would end in the same way.
    """
    attempt = BudgetAttempt(path, tokens)
    attempt.write()
    try:
        yield attempt
    except OutOfMemoryError as error:
        if path is None or not error.smaller_budget_helps or tokens <= MIN_TOKENS:
            delete(path)
            raise
        attempt.write(ran_out=True)
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
    """The budget of an attempt that memory ended; None if there was no attempt or it ended otherwise.

    Raises TrainingError, and deletes the note, if it was the smallest budget.
    """
    note = budget_note.read(path)
    if note is None or not ended_by_memory(note):
        return None
    tokens: int = note["token_budget"]
    if tokens <= MIN_TOKENS:
        delete(path)
        raise TrainingError(
            f"Memory ran out with token_budget={tokens}, the least that auto takes.",
            "A microbatch must fit into memory with its activations.",
            "Make memory free, lower max_length, set activation_checkpointing=true, or choose a smaller model.",
        )
    return tokens


def ended_by_memory(note: dict[str, Any]) -> bool:
    """Whether memory ended the process that left a note.

    The launcher records the cause where it can (:func:`budget_note.record_cause`). Otherwise the kernel's count of
    processes killed for memory decides; it counts all processes of the machine. Without that count, or after a reboot,
    memory counts as the cause if no step had been completed.
    """
    if note["ran_out"]:
        return True
    kills, before = host_memory.oom_kills(), note["oom_kills"]
    if kills is None or not isinstance(before, int) or note["boot"] != host_memory.boot_id():
        return not note["proven"]
    return kills > before
