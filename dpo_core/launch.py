"""Start a stage's process, forward signals to it, and bring its error back as our own."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_core import host_memory, interpreter
from dpo_core.errors import (
    DiedError,
    DPOError,
    OutOfMemoryError,
    RecipeError,
    StoppedError,
    TrainingError,
    from_json,
)
from dpo_core.records import Record
from dpo_core.store import Store
from dpo_core.worker import ERROR_FILE

GRACE_S = 120.0
BUDGETED = ("train", "warm_start")  # stages whose memory the token budget decides


def launch(stage: str, key: str, request: Record, store: Store, python: Path | None = None) -> None:
    """Run a stage in a process of its own and wait for it.

    ``python``: the interpreter that runs it, None for this one, see :mod:`dpo_core.interpreter`. The process leads a
    session of its own, so that Ctrl-C reaches it once, as SIGTERM, from here: it then finishes its step and leaves a
    checkpoint. Raises what the stage raised; StoppedError after Ctrl-C; RecipeError for an interpreter that does not
    start.
    """
    with tempfile.TemporaryDirectory(prefix="dpo-") as place:
        request_file, error_file = Path(place) / "request.json", Path(place) / ERROR_FILE
        request_file.write_text(request.model_dump_json())
        words, environment = command(stage, request_file, store, key), dict(os.environ)
        if python is not None:
            words[0], environment = str(python), interpreter.environment(python, Path(place))
        kills = host_memory.oom_kills()
        try:
            code = wait(words, environment)
        except KeyboardInterrupt:
            raise told(error_file) or StoppedError(
                f"Stopped in stage {stage}.", "Finished stages are kept.", "Run the same command again to continue."
            ) from None
        except BaseException:  # an orchestrator's way of telling of SIGTERM: its, but what the stage said is said
            if error := told(error_file):
                print(f"stopped: {error}", file=sys.stderr, flush=True)
            raise
        if code:
            raise told(error_file) or killed_for_memory(stage, code, request, kills) or unexpected(stage, code)


def command(stage: str, request_file: Path, store: Store, key: str) -> list[str]:
    """What runs one stage as a child of this process."""
    return [sys.executable, "-m", "dpo_core.worker", stage, str(request_file), str(store.root), key, str(os.getpid())]


def wait(words: list[str], environment: dict[str, str]) -> int:
    """The exit code of a child. Whatever interrupts the wait stops the child politely first.

    Raises RecipeError for a program that does not start.
    """
    environment = environment | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    try:
        child = subprocess.Popen(words, start_new_session=True, env=environment)
    except OSError as error:
        raise RecipeError(
            f"{words[0]} does not start: {error.strerror}.", "A stage runs in an interpreter.", "See eval_python."
        ) from error
    try:
        return child.wait()
    except BaseException:
        stop(child)
        raise


def stop(child: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, time for a checkpoint, then SIGKILL; a second interrupt kills at once."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def told(error_file: Path) -> DPOError | None:
    """The error that the stage left for its parent, if it did."""
    return from_json(error_file.read_text()) if error_file.is_file() else None


def killed_for_memory(stage: str, code: int, request: Record, kills_before: int | None) -> DPOError | None:
    """The error for a process that the kernel ended for want of memory, None for any other end.

    One with a token budget that the recipe gives would end so again: OutOfMemoryError. Otherwise DiedError.
    """
    kills = host_memory.oom_kills()
    if code != -signal.SIGKILL or kills is None or kills_before is None or kills <= kills_before:
        return None
    found = f"The process of stage {stage} was ended by the kernel: memory ran out"
    budget = getattr(getattr(request, "train", None), "token_budget", None) if stage in BUDGETED else None
    if isinstance(budget, int):
        return OutOfMemoryError(
            f"{found} with token_budget={budget}.",
            "A microbatch must fit into memory with its activations.",
            f"Set token_budget={max(1, budget // 2)} or auto; finished stages and checkpoints are kept.",
        )
    rule = "token_budget=auto takes half in the next try." if budget else "It needs what other processes may hold."
    return DiedError(f"{found}.", rule, "Run the same command again: finished stages and checkpoints are kept.")


def unexpected(stage: str, code: int) -> DPOError:
    """The error for a process that ended without saying why: killed (DiedError, trying again may help), or a bug."""
    if code < 0:
        return DiedError(
            f"The process of stage {stage} was ended by {signal.Signals(-code).name}.",
            "SIGKILL often means that memory ran out.",
            "Run the same command again: finished stages and checkpoints are kept.",
        )
    return TrainingError(
        f"The process of stage {stage} ended with exit code {code}.",
        "",
        "Its traceback is above; finished stages are kept.",
    )
