"""One stage in its own process: ``python -m dpo_core.worker <stage> <request.json> <store> <key> <parent's pid>``."""

import errno
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from dpo_core import durable, garbage
from dpo_core.errors import DiskFullError, DPOError, OutOfMemoryError, of_memory
from dpo_core.records import Record
from dpo_core.requests import (
    AcquireRequest,
    AnswerRequest,
    EvaluateRequest,
    GenerateRequest,
    ImportsRequest,
    JudgeRequest,
    LookRequest,
    MergeRequest,
    PromptsRequest,
    RenderRequest,
    ScoreRequest,
    TrainRequest,
    WarmStartRequest,
)
from dpo_core.store import Store

STAGES: dict[str, tuple[str, type[Record]]] = {
    "acquire": ("dpo_core.data.acquire", AcquireRequest),
    "prompts": ("dpo_core.evaluate.prompts", PromptsRequest),
    "render": ("dpo_core.render.render", RenderRequest),
    "merge": ("dpo_core.model.merge", MergeRequest),
    "warm_start": ("dpo_core.train.warm_start", WarmStartRequest),
    "score_reference": ("dpo_core.train.reference", ScoreRequest),
    "train": ("dpo_core.evaluate.watched", TrainRequest),
    "evaluate": ("dpo_core.evaluate.evaluate", EvaluateRequest),
    "imports": ("dpo_core.evaluate.imports", ImportsRequest),
    "look": ("dpo_core.evaluate.look", LookRequest),
    "answer": ("dpo_core.evaluate.answer", AnswerRequest),
    "generate": ("dpo_core.evaluate.generating", GenerateRequest),
    "judge": ("dpo_core.evaluate.judge", JudgeRequest),
}

ERROR_FILE = "error.json"
ORPHAN_POLL_S = 1.0
# What else than a smaller model helps a stage that memory ran out in.
LESS = {
    "train": "Make memory free, lower max_length, train less (lora_rank)",
    "warm_start": "Make memory free, lower max_length",
    "score_reference": "Make memory free, lower max_length",
    "evaluate": "Make memory free, set a smaller eval_batch_size or max_new_tokens",
    "generate": "Make memory free, set a smaller eval_batch_size or max_new_tokens",
}


def main(stage: str, request_file: Path, store: Path, key: str, parent: int) -> int:
    """Run one stage; an error meant for the user goes to ``error.json`` beside the request, for the parent to raise.

    ``parent`` is told and not asked for here: it may have died before this process came to ask.
    """
    garbage.none_at_the_end()
    threading.Thread(target=leave_with_parent, args=(parent,), daemon=True).start()
    module, kind = STAGES[stage]
    request = kind.model_validate_json(request_file.read_text())
    try:
        with Store(store).write(stage, key) as draft:
            if not draft.there:
                loaded(module).run(request, draft)
    except Exception as raised:
        error = raised if isinstance(raised, DPOError) else full_disk(raised) or no_memory(stage, raised)
        if error is None:
            raise
        if os.environ.get("DPO_DEBUG"):
            traceback.print_exc()
        (request_file.parent / ERROR_FILE).write_text(error.to_json())
        return error.exit_code
    return 0


def loaded(module: str) -> Any:
    """A stage's module."""
    with garbage.importing():
        return importlib.import_module(module)


def full_disk(error: Exception) -> DPOError | None:
    """The error for a disk that takes no more, None for any other cause."""
    told = durable.from_disk(error)
    if told is None or told.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return DiskFullError(
        f"{told.filename or 'A file'} could not be written: {told.strerror}.",
        "What was whole before is still there.",
        "Make room and run the same command again.",
    )


def no_memory(stage: str, error: Exception) -> DPOError | None:
    """The error for memory that ran out where nobody knows better what to lower, None for any other cause."""
    if not of_memory(error):
        return None
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return OutOfMemoryError(
        f"Memory ran out in stage {stage}: {first}.",
        "What a stage holds must fit into memory beside what other processes hold.",
        f"{LESS.get(stage, 'Make memory free')}, or choose a smaller model; finished stages and checkpoints are kept.",
    )


def leave_with_parent(parent: int) -> None:
    """Ask ourselves to stop when the parent is gone: nobody is left to hand a result to.

    What started us may stand between the two of us, such as a profiler; then it is both that have to live.
    """
    nearest = os.getppid()
    while os.getppid() == nearest and (nearest == parent or lives(parent)):
        time.sleep(ORPHAN_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
