"""The note of a token budget that memory decided, there while it is tried; reading and writing it needs no torch."""

import json
import time
from pathlib import Path
from typing import Any

from dpo_core.cache import atomic_files
from dpo_core.system import host_memory

NOTE = "budget_attempt.json"
MIN_TOKENS = 256  # tokens: the least budget that ``auto`` takes


def note_path(stage: str, request: Any, entry: Path) -> Path | None:
    """Where the process of a stage notes its budget, None for a stage without one.

    ``entry``: where the stage's output is, or would be.
    """
    if stage == "train":
        return Path(request.log_path) / NOTE
    return note_beside(entry) if stage == "warm_start" else None


def note_beside(entry: Path) -> Path:
    """The note of a stage that has no directory of its own but its output's."""
    return entry.with_name(f".{entry.name}.{NOTE}")


def write(path: Path, tokens: int, proven: bool = False, ran_out: bool = False) -> None:
    """Note a budget: whether a whole step has fitted (``proven``), whether memory ran out, what the kernel counts."""
    note: dict[str, object] = {"token_budget": tokens, "proven": proven, "ran_out": ran_out}
    note |= {"boot": host_memory.boot_id(), "oom_kills": host_memory.oom_kills(), "time": time.time()}
    atomic_files.write_text(path, json.dumps(note))


def read(path: Path | None) -> dict[str, Any] | None:
    """What was noted, None for nothing that can be read."""
    try:
        note: dict[str, Any] = json.loads(path.read_text()) if path is not None else {}
        return note | {"token_budget": int(note["token_budget"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def delete(path: Path | None) -> None:
    """Take the note away."""
    if path is not None:
        path.unlink(missing_ok=True)


def record_cause(path: Path | None, by_memory: bool, since: float) -> int | None:
    """Write down why the process ended that left a note: for want of memory, or for something else that is no reason
    to take less. Returns the budget in the first case, None in the other and where there is no note.

    A process that itself noted that memory ran out is believed. ``since``: when the process was started, in seconds of
    the epoch; an older note is another's.
    """
    note = read(path)
    if path is None or note is None or note.get("time", 0.0) < since:
        return None
    tokens: int = note["token_budget"]
    if by_memory:
        write(path, tokens, bool(note.get("proven")), ran_out=True)
        return tokens
    if not note.get("ran_out"):
        delete(path)
    return None
