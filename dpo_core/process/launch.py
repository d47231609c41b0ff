"""Launching a stage process: signals are forwarded to it, its error is raised in this process."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dpo_core.cache.store import Store
from dpo_core.errors import (
    DiedError,
    DPOError,
    OutOfMemoryError,
    RecipeError,
    StoppedError,
    TrainingError,
    from_json,
)
from dpo_core.process.worker import ERROR_FILE
from dpo_core.stages.stage import StageCall
from dpo_core.system import host_memory, python_environment
from dpo_core.train.batching import budget_note

GRACE_S = 120.0


def launch(call: StageCall[Any], store: Store) -> None:
    """Run a stage in a process of its own and wait for it.

    The process leads a session of its own, so that Ctrl-C reaches it once, as SIGTERM sent from here: it finishes its
    step and leaves a checkpoint.

    Raises what the stage raised; StoppedError after Ctrl-C; RecipeError for an interpreter that does not start.
    """
    stage = call.stage
    with tempfile.TemporaryDirectory(prefix="dpo-") as directory:
        request_file, error_file = Path(directory) / "request.json", Path(directory) / ERROR_FILE
        request_file.write_text(call.request.model_dump_json())
        words, environment = command(stage.name, request_file, store, call.cache_key), dict(os.environ)
        if call.python is not None:
            words[0], environment = (
                str(call.python),
                python_environment.environment_variables(call.python, Path(directory)),
            )
        note = budget_note.note_path(stage.name, call.request, store.entry(stage.name, call.cache_key))
        started, kills = time.time(), host_memory.oom_kills()
        try:
            code = wait(words, environment)
        except KeyboardInterrupt:
            budget_note.record_cause(note, False, started)
            raise error_of(error_file) or StoppedError(
                f"Stopped in stage {stage.name}.",
                "Finished stages are kept.",
                "Run the same command again to continue.",
            ) from None
        except BaseException:  # how an orchestrator reports SIGTERM; the stage's own error is printed, not lost
            budget_note.record_cause(note, False, started)
            if error := error_of(error_file):
                print(f"stopped: {error}", file=sys.stderr, flush=True)
            raise
        if code:
            by_memory = ended_for_memory(code, kills)
            tried = budget_note.record_cause(note, by_memory, started) if by_memory is not None else None
            killed = killed_for_memory_error(call, tried) if by_memory else unexpected_end_error(stage.name, code)
            raise error_of(error_file) or killed


def command(stage: str, request_file: Path, store: Store, key: str) -> list[str]:
    """The command line of a stage process."""
    return [
        sys.executable,
        "-m",
        "dpo_core.process.worker",
        stage,
        str(request_file),
        str(store.root),
        key,
        str(os.getpid()),
    ]


def wait(words: list[str], environment: dict[str, str]) -> int:
    """Start a child process and return its exit code. An interruption of the wait sends it SIGTERM first.

    Raises RecipeError for another interpreter that does not start, TrainingError where it is our own.
    """
    environment = environment | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    try:
        child = subprocess.Popen(words, start_new_session=True, env=environment)
    except OSError as error:
        raise not_started_error(words[0], error) from error
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


def error_of(error_file: Path) -> DPOError | None:
    """The DPOError that the stage process wrote, None where it wrote none."""
    return from_json(error_file.read_text()) if error_file.is_file() else None


def not_started_error(python: str, error: OSError) -> DPOError:
    """The error for an interpreter that does not start."""
    found = f"{python} does not start: {error.strerror}."
    if python != sys.executable:
        return RecipeError(found, "The stage runs in the interpreter that eval_python names.", "See eval_python.")
    return TrainingError(
        found,
        "Every stage runs in a process of its own, in the interpreter of this one.",
        "Make memory free or end other processes (ulimit -u is how many there may be), and run the same command again.",
    )


def ended_for_memory(code: int, kills_before: int | None) -> bool | None:
    """Whether the kernel killed the process because memory ran out; None where the kernel keeps no count of that."""
    if code != -signal.SIGKILL:
        return False
    kills = host_memory.oom_kills()
    return None if kills is None or kills_before is None else kills > kills_before


def killed_for_memory_error(call: StageCall[Any], tried: int | None) -> DPOError:
    """The error for a process that the kernel killed because memory ran out.

    ``tried``: the token budget that ``auto`` was trying, None where it was trying none. OutOfMemoryError where another
    try would end the same, because the budget cannot be lower; DiedError otherwise.
    """
    found = f"The process of stage {call.stage.name} was ended by the kernel: memory ran out"
    train = getattr(call.request, "train", None)
    budget = getattr(train, "token_budget", None) if call.stage.token_budget_decides else None
    if isinstance(budget, int):
        return OutOfMemoryError(
            f"{found} with token_budget={budget}.",
            "A microbatch must fit into memory with its activations.",
            f"Set token_budget={max(1, budget // 2)} or auto; finished stages and checkpoints are kept.",
        )
    if tried is None:
        return DiedError(
            f"{found}.",
            "What a stage holds must fit into memory beside what other processes hold.",
            "Make memory free and run the same command again: finished stages and checkpoints are kept.",
        )
    if tried > budget_note.MIN_TOKENS:
        rule = f"token_budget=auto takes half in the next try: this one had {tried:,} tokens."
        again = "Run the same command again: finished stages and checkpoints are kept."
        return DiedError(f"{found}.", rule, again)
    return OutOfMemoryError(
        f"{found} with token_budget={tried}, the least that auto takes.",
        "A microbatch must fit into memory with its activations.",
        "Make memory free, lower max_length, set activation_checkpointing=true, or choose a smaller model.",
    )


def unexpected_end_error(stage: str, code: int) -> DPOError:
    """The error for a process that left no error: DiedError where a signal killed it, TrainingError for a bug."""
    if code < 0:
        return DiedError(
            f"The process of stage {stage} was ended by {signal.Signals(-code).name}.",
            "SIGKILL often means that memory ran out." if code == -signal.SIGKILL else "",
            "Run the same command again: finished stages and checkpoints are kept.",
        )
    return TrainingError(
        f"The process of stage {stage} ended with exit code {code}.",
        "",
        "Its traceback is above; finished stages are kept.",
    )
