"""Trials: each injects one fault into a run in the arena, at a random moment or place.

Afterwards the same command runs again, and must end with the result of the undisturbed run, to the bit.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

from dpo_core.cache import atomic_files
from dpo_core.train.checkpoint import checkpoint_state, journal
from tests.faults.arena import (
    Arena,
    Fault,
    jumping_clock,
    leftovers,
    limit_files,
    printed,
    processes,
    result,
    wait_for_exit,
)

Trial = Callable[[Arena, random.Random], str]
STOPPED, DISK = 75, 4


def check_recovery(arena: Arena, directory: Path, *words: str) -> None:
    """Run the command again: its result must equal ``arena.expected``, and no file or process may be left over."""
    arena.finish(directory, *words)
    outcome = result(directory)
    wrong = [name for name, value in arena.expected.items() if outcome[name] != value]
    steps = [row["step"] for row in outcome["journal"]]
    assert not wrong, f"{', '.join(wrong)} differ from the undisturbed run's, steps {steps}: {printed(directory)}"
    assert not leftovers(directory), f"left behind: {leftovers(directory)}"
    assert not processes(directory), f"still at work: {processes(directory)}"


def wait_for_orphans(directory: Path) -> None:
    """Wait until no process works in a directory: an orphan notices within a second that its parent is gone."""
    end = time.monotonic() + 20
    while processes(directory) and time.monotonic() < end:
        time.sleep(0.02)
    assert not processes(directory), f"still at work: {processes(directory)}"


def worker_of(command: int) -> int | None:
    """Pid of the process of a command's running stage, None if there is none."""
    children = Path(f"/proc/{command}/task/{command}/children")
    try:
        return int(children.read_text().split()[0])
    except (OSError, IndexError):
        return None


def interrupted(arena: Arena, chance: random.Random, number: int, target: str) -> tuple[Path, int]:
    """Send a signal to the command or its stage at a random moment; returns the directory and the exit code."""
    prepared = chance.random() < 0.7
    directory = arena.fresh("trial", prepared)
    command = arena.start(directory)
    time.sleep(chance.uniform(0.02, 1.6 if prepared else 3.0))
    pid = worker_of(command) if target == "stage" else command
    with suppress(ProcessLookupError):
        os.kill(pid or command, number)
    code = wait_for_exit(command)
    wait_for_orphans(directory)
    return directory, code


def killed_stage(arena: Arena, chance: random.Random) -> str:
    """SIGKILL to a stage's process at a random moment."""
    directory, code = interrupted(arena, chance, signal.SIGKILL, "stage")
    check_recovery(arena, directory)
    return f"exit code {code}"


def killed_command(arena: Arena, chance: random.Random) -> str:
    """SIGKILL to the command itself: its stage becomes an orphan and must end."""
    directory, code = interrupted(arena, chance, signal.SIGKILL, "command")
    check_recovery(arena, directory)
    return f"exit code {code}"


def interrupted_by_user(arena: Arena, chance: random.Random) -> str:
    """Ctrl-C at a random moment: a checkpoint is left, and the exit code is 75."""
    directory, code = interrupted(arena, chance, signal.SIGINT, "command")
    assert code in (0, STOPPED), f"exit code {code}: {printed(directory)}"
    check_recovery(arena, directory)
    return f"exit code {code}"


def terminated_stage(arena: Arena, chance: random.Random) -> str:
    """SIGTERM to a stage, as a scheduler sends it."""
    directory, code = interrupted(arena, chance, signal.SIGTERM, "stage")
    check_recovery(arena, directory)
    return f"exit code {code}"


def dying_at(name: str, module: object, nth: int) -> Fault:
    """A fault: the training process kills itself in the nth call of ``module.name``, before it or half-way through."""

    def fault(stage: str) -> None:
        if stage != "train":
            return
        original, calls = getattr(module, name), iter(range(10_000))

        def dying(*arguments: object, **keywords: object) -> object:
            if next(calls) != nth:
                return original(*arguments, **keywords)
            half_written(name, arguments)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(module, name, dying)

    return fault


def half_written(name: str, arguments: tuple[object, ...]) -> None:
    """Write what is on disk when a process dies while it writes a file or a line."""
    if name == "append":
        path, row = arguments
        with Path(str(path)).open("a") as stream:
            stream.write(repr(row)[: len(repr(row)) // 2])
    if name == "save_file":
        Path(str(arguments[1])).write_bytes(b"\x08\x00\x00\x00")


FAULT_POINTS = (
    ("append", journal),
    ("save_file", checkpoint_state),
    ("write_text", atomic_files),
    ("rename", atomic_files),
    ("sync", atomic_files),
)


def killed_inside(arena: Arena, chance: random.Random) -> str:
    """SIGKILL inside a save, a rename, an fsync or a journal's append."""
    name, module = chance.choice(FAULT_POINTS)
    nth = chance.randrange(12)
    directory = arena.fresh("trial")
    code = wait_for_exit(arena.start(directory, fault=dying_at(name, module, nth)))
    check_recovery(arena, directory)
    return f"{name} {nth}: exit code {code}"


def files_of(directory: Path) -> list[Path]:
    """Every non-empty file of a run's directory, sorted."""
    return sorted(path for path in (directory / "run").rglob("*") if path.is_file() and path.stat().st_size)


def killed_or_finished(arena: Arena, chance: random.Random) -> Path:
    """Directory of a run that was killed half-way, or of a finished one."""
    directory = arena.fresh("trial")
    if chance.random() < 0.5:
        command = arena.start(directory)
        lines = directory / "run" / "metrics.jsonl"
        goal = chance.randrange(2, 9)
        while len(journal.read(lines)) <= goal:
            time.sleep(0.005)
        os.kill(worker_of(command) or command, signal.SIGKILL)
        wait_for_exit(command)
        wait_for_orphans(directory)
    else:
        arena.finish(directory)
    return directory


def flipped_bit(arena: Arena, chance: random.Random) -> str:
    """Flip one bit of one file of the run's directory."""
    directory = killed_or_finished(arena, chance)
    path = chance.choice(files_of(directory))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    check_recovery(arena, directory)
    return str(path.relative_to(directory))


def truncated_file(arena: Arena, chance: random.Random) -> str:
    """Truncate one file of the run's directory."""
    directory = killed_or_finished(arena, chance)
    path = chance.choice(files_of(directory))
    os.truncate(path, chance.randrange(path.stat().st_size))
    check_recovery(arena, directory)
    return str(path.relative_to(directory))


def cached_file_damaged(arena: Arena, chance: random.Random) -> str:
    """Flip one bit of one file of the cache: data, reference, evaluation."""
    directory = arena.fresh("trial")
    arena.finish(directory)
    path = chance.choice(sorted(p for p in (directory / "runs/store").rglob("*") if p.is_file() and p.stat().st_size))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    check_recovery(arena, directory)
    return str(path.relative_to(directory / "runs/store"))


def full_disk(arena: Arena, chance: random.Random) -> str:
    """Limit the size of files: a checkpoint or the final model cannot be written."""
    directory = arena.fresh("trial")
    code = wait_for_exit(arena.start(directory, fault=limit_files(chance.choice((30_000, 60_000, 200_000, 900_000)))))
    assert code == DISK, f"exit code {code}: {printed(directory)}"
    assert "Traceback" not in printed(directory), printed(directory)
    check_recovery(arena, directory)
    return f"exit code {code}"


def clock_jump(arena: Arena, chance: random.Random) -> str:
    """Let the wall clock jump by days during the run, and kill the run."""
    directory = arena.fresh("trial")
    command = arena.start(directory, fault=jumping_clock(chance))
    time.sleep(chance.uniform(0.1, 1.5))
    if pid := worker_of(command):
        os.kill(pid, signal.SIGKILL)
    wait_for_exit(command)
    check_recovery(arena, directory)
    return "jumped"


def run_twice(arena: Arena, chance: random.Random) -> str:
    """Run the same command twice at once: the second waits for the first or is refused."""
    directory = arena.fresh("trial", prepared=chance.random() < 0.5)
    first = arena.start(directory)
    time.sleep(chance.uniform(0.0, 0.6))
    second = arena.start(directory)
    codes = wait_for_exit(first), wait_for_exit(second)
    assert 0 in codes, f"exit codes {codes}: {printed(directory)}"
    assert set(codes) <= {0, 2}, f"exit codes {codes}: {printed(directory)}"
    check_recovery(arena, directory)
    return f"exit codes {codes}"


TRIALS: dict[str, tuple[Trial, float]] = {
    "SIGKILL, a stage": (killed_stage, 4),
    "SIGKILL, the command": (killed_command, 2),
    "SIGKILL inside save, rename, append": (killed_inside, 5),
    "SIGTERM, a stage": (terminated_stage, 1),
    "Ctrl-C": (interrupted_by_user, 1),
    "bit flipped in the run's directory": (flipped_bit, 3),
    "file of the run's directory cut": (truncated_file, 3),
    "bit flipped in the cache": (cached_file_damaged, 2),
    "disk full": (full_disk, 1),
    "clock jumps": (clock_jump, 1),
    "a second run beside": (run_twice, 1),
}


def schedule(injections: int) -> Iterator[tuple[str, Trial, int]]:
    """Trials with their numbers of injections, in proportion to their weights; at least ``injections`` in total."""
    total = sum(weight for _, weight in TRIALS.values())
    for name, (trial, weight) in TRIALS.items():
        yield name, trial, ceil(injections * weight / total)
