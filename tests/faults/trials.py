"""The faults: each a function of an arena and a source of chance, one injection a call.

After each the same command is given again, and its end must be that of the undisturbed run, to the bit.
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
    processes,
    result,
    said,
    waited,
)

Trial = Callable[[Arena, random.Random], str]
STOPPED, DISK = 75, 4


def settled(arena: Arena, place: Path, *words: str) -> None:
    """Give the command again; the run must end as the undisturbed one did, and leave nothing behind."""
    arena.finish(place, *words)
    found = result(place)
    wrong = [name for name, value in arena.expected.items() if found[name] != value]
    steps = [row["step"] for row in found["journal"]]
    assert not wrong, f"{', '.join(wrong)} differ from the undisturbed run's, steps {steps}: {said(place)}"
    assert not leftovers(place), f"left behind: {leftovers(place)}"
    assert not processes(place), f"still at work: {processes(place)}"


def gone(place: Path) -> None:
    """Wait until no process works in a directory: an orphan notices within a second that nobody waits for it."""
    end = time.monotonic() + 20
    while processes(place) and time.monotonic() < end:
        time.sleep(0.02)
    assert not processes(place), f"still at work: {processes(place)}"


def worker_of(command: int) -> int | None:
    """The pid of a command's running stage."""
    children = Path(f"/proc/{command}/task/{command}/children")
    try:
        return int(children.read_text().split()[0])
    except (OSError, IndexError):
        return None


def interrupted(arena: Arena, chance: random.Random, number: int, whom: str) -> tuple[Path, int]:
    """Send a signal to the command or its stage at a random moment; the directory and the command's exit code."""
    prepared = chance.random() < 0.7
    place = arena.fresh("trial", prepared)
    command = arena.start(place)
    time.sleep(chance.uniform(0.02, 1.6 if prepared else 3.0))
    target = worker_of(command) if whom == "stage" else command
    with suppress(ProcessLookupError):
        os.kill(target or command, number)
    code = waited(command)
    gone(place)
    return place, code


def killed_stage(arena: Arena, chance: random.Random) -> str:
    """SIGKILL to a stage's process at a random moment."""
    place, code = interrupted(arena, chance, signal.SIGKILL, "stage")
    settled(arena, place)
    return f"exit code {code}"


def killed_command(arena: Arena, chance: random.Random) -> str:
    """SIGKILL to the command itself: its stage is an orphan, and leaves."""
    place, code = interrupted(arena, chance, signal.SIGKILL, "command")
    settled(arena, place)
    return f"exit code {code}"


def interrupted_by_user(arena: Arena, chance: random.Random) -> str:
    """Ctrl-C at a random moment: a checkpoint, and an exit code of its own."""
    place, code = interrupted(arena, chance, signal.SIGINT, "command")
    assert code in (0, STOPPED), f"exit code {code}: {said(place)}"
    settled(arena, place)
    return f"exit code {code}"


def terminated_stage(arena: Arena, chance: random.Random) -> str:
    """SIGTERM to a stage, as a scheduler sends it."""
    place, code = interrupted(arena, chance, signal.SIGTERM, "stage")
    settled(arena, place)
    return f"exit code {code}"


def dying_at(name: str, place: object, nth: int) -> Fault:
    """In the training process, the nth call of a function is its death: before it, or half-way through."""

    def fault(stage: str) -> None:
        if stage != "train":
            return
        true, calls = getattr(place, name), iter(range(10_000))

        def dying(*arguments: object, **named: object) -> object:
            if next(calls) != nth:
                return true(*arguments, **named)
            half_written(name, arguments)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(place, name, dying)

    return fault


def half_written(name: str, arguments: tuple[object, ...]) -> None:
    """What is on the disk when a process dies in the middle of writing a file or a line."""
    if name == "append":
        path, row = arguments
        with Path(str(path)).open("a") as stream:
            stream.write(repr(row)[: len(repr(row)) // 2])
    if name == "save_file":
        Path(str(arguments[1])).write_bytes(b"\x08\x00\x00\x00")


PLACES = (
    ("append", journal),
    ("save_file", checkpoint_state),
    ("write_text", atomic_files),
    ("rename", atomic_files),
    ("sync", atomic_files),
)


def killed_inside(arena: Arena, chance: random.Random) -> str:
    """SIGKILL inside a save, a rename, an fsync or a journal's append."""
    name, module = chance.choice(PLACES)
    nth = chance.randrange(12)
    place = arena.fresh("trial")
    code = waited(arena.start(place, fault=dying_at(name, module, nth)))
    settled(arena, place)
    return f"{name} {nth}: exit code {code}"


def files_of(place: Path) -> list[Path]:
    """Every file of a run's directory, in an order that does not depend on the disk."""
    return sorted(path for path in (place / "run").rglob("*") if path.is_file() and path.stat().st_size)


def disturbed(arena: Arena, chance: random.Random) -> Path:
    """A run that was stopped half-way, or one that is finished."""
    place = arena.fresh("trial")
    if chance.random() < 0.5:
        command = arena.start(place)
        lines = place / "run" / "metrics.jsonl"
        goal = chance.randrange(2, 9)
        while len(journal.read(lines)) <= goal:
            time.sleep(0.005)
        os.kill(worker_of(command) or command, signal.SIGKILL)
        waited(command)
        gone(place)
    else:
        arena.finish(place)
    return place


def flipped(arena: Arena, chance: random.Random) -> str:
    """One bit of one file of the run's directory."""
    place = disturbed(arena, chance)
    path = chance.choice(files_of(place))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    settled(arena, place)
    return str(path.relative_to(place))


def cut(arena: Arena, chance: random.Random) -> str:
    """One file of the run's directory ends too early."""
    place = disturbed(arena, chance)
    path = chance.choice(files_of(place))
    os.truncate(path, chance.randrange(path.stat().st_size))
    settled(arena, place)
    return str(path.relative_to(place))


def cached_file_damaged(arena: Arena, chance: random.Random) -> str:
    """One bit of one file of the cache: data, reference, evaluation."""
    place = arena.fresh("trial")
    arena.finish(place)
    path = chance.choice(sorted(p for p in (place / "runs/store").rglob("*") if p.is_file() and p.stat().st_size))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    settled(arena, place)
    return str(path.relative_to(place / "runs/store"))


def full_disk(arena: Arena, chance: random.Random) -> str:
    """No file may grow beyond a size: a checkpoint or the final model cannot be written."""
    place = arena.fresh("trial")
    code = waited(arena.start(place, fault=limit_files(chance.choice((30_000, 60_000, 200_000, 900_000)))))
    assert code == DISK, f"exit code {code}: {said(place)}"
    assert "Traceback" not in said(place), said(place)
    settled(arena, place)
    return f"exit code {code}"


def clock(arena: Arena, chance: random.Random) -> str:
    """The wall clock jumps by days while the run goes on, and the run is killed on the way."""
    place = arena.fresh("trial")
    command = arena.start(place, fault=jumping_clock(chance))
    time.sleep(chance.uniform(0.1, 1.5))
    if worker := worker_of(command):
        os.kill(worker, signal.SIGKILL)
    waited(command)
    settled(arena, place)
    return "jumped"


def beside(arena: Arena, chance: random.Random) -> str:
    """The same command twice at once: the second waits for the first or is refused, and nothing is written twice."""
    place = arena.fresh("trial", prepared=chance.random() < 0.5)
    first = arena.start(place)
    time.sleep(chance.uniform(0.0, 0.6))
    second = arena.start(place)
    codes = waited(first), waited(second)
    assert 0 in codes, f"exit codes {codes}: {said(place)}"
    assert set(codes) <= {0, 2}, f"exit codes {codes}: {said(place)}"
    settled(arena, place)
    return f"exit codes {codes}"


TRIALS: dict[str, tuple[Trial, float]] = {
    "SIGKILL, a stage": (killed_stage, 4),
    "SIGKILL, the command": (killed_command, 2),
    "SIGKILL inside save, rename, append": (killed_inside, 5),
    "SIGTERM, a stage": (terminated_stage, 1),
    "Ctrl-C": (interrupted_by_user, 1),
    "bit flipped in the run's directory": (flipped, 3),
    "file of the run's directory cut": (cut, 3),
    "bit flipped in the cache": (cached_file_damaged, 2),
    "disk full": (full_disk, 1),
    "clock jumps": (clock, 1),
    "a second run beside": (beside, 1),
}


def schedule(injections: int) -> Iterator[tuple[str, Trial, int]]:
    """Kinds, each with its number of injections: in proportion, so many in all at least."""
    whole = sum(weight for _, weight in TRIALS.values())
    for name, (trial, weight) in TRIALS.items():
        yield name, trial, ceil(injections * weight / whole)
