"""Stage process: ``python -m dpo_core.process.worker <stage> <request.json> <store> <key> <parent's pid>``."""

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

from dpo_core.cache import atomic_files
from dpo_core.cache.store import Store
from dpo_core.errors import DiskFullError, DPOError, OutOfMemoryError, of_memory
from dpo_core.stages import STAGES
from dpo_core.system import gc_tuning

ERROR_FILE = "error.json"
ORPHAN_POLL_S = 1.0


def main(stage: str, request_file: Path, store: Path, key: str, parent: int) -> int:
    """Run one stage; an error meant for the user goes to ``error.json`` beside the request, for the parent to raise.

    ``parent`` is told and not asked for here: it may have died before this process came to ask.
    """
    gc_tuning.skip_at_exit()
    threading.Thread(target=leave_with_parent, args=(parent,), daemon=True).start()
    definition = STAGES[stage]
    request = definition.request.model_validate_json(request_file.read_text())
    try:
        with Store(store).write(stage, key) as draft:
            if not draft.there:
                imported(definition.entry_point).run(request, draft)
    except Exception as raised:
        error = raised if isinstance(raised, DPOError) else full_disk(raised) or no_memory(stage, raised)
        if error is None:
            raise
        if os.environ.get("DPO_DEBUG"):
            traceback.print_exc()
        (request_file.parent / ERROR_FILE).write_text(error.to_json())
        return error.exit_code
    return 0


def imported(module: str) -> Any:
    """A stage's module."""
    with gc_tuning.paused():
        return importlib.import_module(module)


def full_disk(error: Exception) -> DPOError | None:
    """The error for a disk that takes no more, None for any other cause."""
    told = atomic_files.from_disk(error)
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
        f"{STAGES[stage].out_of_memory_remedy}, or choose a smaller model; finished stages and checkpoints are kept.",
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
