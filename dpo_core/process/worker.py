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
from dpo_core.errors import DiskFullError, DPOError, OutOfMemoryError, is_out_of_memory
from dpo_core.stages import STAGES
from dpo_core.system import gc_tuning

ERROR_FILE = "error.json"
ORPHAN_POLL_S = 1.0


def main(stage: str, request_file: Path, store: Path, key: str, parent: int) -> int:
    """Run one stage; returns the exit code.

    A DPOError is written to ``error.json`` beside the request, for the parent process to raise.
    ``parent``: its process id. It is an argument because the parent may die before this process could look it up.
    """
    gc_tuning.skip_at_exit()
    threading.Thread(target=stop_with_parent, args=(parent,), daemon=True).start()
    definition = STAGES[stage]
    request = definition.request.model_validate_json(request_file.read_text())
    try:
        with Store(store).write(stage, key) as draft:
            if not draft.there:
                import_stage(definition.entry_point).run(request, draft)
    except Exception as raised:
        error = (
            raised if isinstance(raised, DPOError) else disk_full_error(raised) or out_of_memory_error(stage, raised)
        )
        if error is None:
            raise
        if os.environ.get("DPO_DEBUG"):
            traceback.print_exc()
        (request_file.parent / ERROR_FILE).write_text(error.to_json())
        return error.exit_code
    return 0


def import_stage(module: str) -> Any:
    """Import the module of a stage's entry point."""
    with gc_tuning.paused():
        return importlib.import_module(module)


def disk_full_error(error: Exception) -> DPOError | None:
    """The error for a full disk, None for any other cause."""
    cause = atomic_files.disk_error_in(error)
    if cause is None or cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return DiskFullError(
        f"{cause.filename or 'A file'} could not be written: {cause.strerror}.",
        "Finished stages and checkpoints are kept.",
        "Make room and run the same command again.",
    )


def out_of_memory_error(stage: str, error: Exception) -> DPOError | None:
    """The error for memory that ran out in a stage, None for any other cause."""
    if not is_out_of_memory(error):
        return None
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return OutOfMemoryError(
        f"Memory ran out in stage {stage}: {first}.",
        "A stage needs free memory for its model and its data, beside other processes.",
        f"{STAGES[stage].out_of_memory_remedy}, or choose a smaller model; finished stages and checkpoints are kept.",
    )


def stop_with_parent(parent: int) -> None:
    """Send SIGTERM to this process when its parent process has ended.

    A process between the two, such as a profiler, must be running too.
    """
    nearest = os.getppid()
    while os.getppid() == nearest and (nearest == parent or is_running(parent)):
        time.sleep(ORPHAN_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def is_running(pid: int) -> bool:
    """Whether a process of this id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
