"""A small run whose undisturbed end is known, and the processes in which it is disturbed.

Stages run in forked processes of their own, so that a trial costs a second and not ten: torch is imported once. The
forked process is as real as any: it is killed, limited and left alone like one.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.cli import run_command
from dpo_core.config.recipe import Recipe
from dpo_core.config.settings import read_recipe
from dpo_core.errors import DPOError, interrupted
from dpo_core.process import launch, worker
from dpo_core.train.checkpoint import checkpoint_state, journal, run_dir

PATIENCE_S = 60.0
TIMES = ("time", "batch_time", "perf/", "time/")  # the only values of a step that may differ

Fault = Callable[[str], None]


@dataclass(frozen=True)
class Arena:
    """``prepared``: a directory in which the stages before training are done. ``expected``: the undisturbed result."""

    root: Path
    model: Path
    seed: int = 0
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def prepared(self) -> Path:
        """Copied for every trial that is about training."""
        return self.root / "prepared"

    def build(self) -> None:
        """Run the stages before training, and once everything, undisturbed."""
        self.prepared.mkdir(parents=True)
        rows = [
            {"prompt": f"Tell me about story {n}.", "chosen": "Once upon a time. Thank you!", "rejected": f"No {n}."}
            for n in range(40)
        ]
        (self.prepared / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.finish(self.prepared, last="score_reference")
        whole = self.fresh("whole")
        self.finish(whole)
        self.expected.update(result(whole))

    def fresh(self, name: str, prepared: bool = True) -> Path:
        """A directory for a trial, with or without the first stages done."""
        place = self.root / name
        shutil.rmtree(place, ignore_errors=True)
        if prepared:
            shutil.copytree(self.prepared, place)
        else:
            place.mkdir()
            shutil.copy(self.prepared / "pairs.jsonl", place)
        return place

    def recipe(self, place: Path, *words: str) -> Recipe:
        """Ten steps with LoRA, a checkpoint every other step."""
        told = [
            f"dataset={place / 'pairs.jsonl'}",
            f"model_name={self.model}",
            f"runs_dir={place / 'runs'}",
            f"log_path={place / 'run'}",
            "renderer_name=role_colon",
            "lora_rank=4",
            "batch_size=4",
            "learning_rate=1e-2",
            "num_epochs=2",
            "max_steps=10",
            "max_length=128",
            "eval_every=5",
            "infrequent_eval_every=5",
            "save_every=2",
            "max_new_tokens=4",
            "num_samples=1",
            "tasks=",
        ]
        return read_recipe(None, [*told, *words])

    def start(self, place: Path, *words: str, fault: Fault | None = None, last: str = "evaluate") -> int:
        """Run the command in a process group of its own; returns its pid."""
        pid = os.fork()
        if pid == 0:
            os._exit(self.command(place, words, fault, last))
        return pid

    def command(self, place: Path, words: tuple[str, ...], fault: Fault | None, last: str) -> int:
        """The command's process: its exit code; what it says goes to ``out.txt``."""
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with (place / "out.txt").open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        ForkedWorker.fault = fault
        launch.subprocess.Popen = ForkedWorker  # type: ignore[misc, assignment, attr-defined]
        try:
            run_command.run_up_to(self.recipe(place, *words), last)
        except (DPOError, KeyboardInterrupt) as raised:
            error = raised if isinstance(raised, DPOError) else interrupted()
            print(f"error: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
            traceback.print_exc()
            return 1
        return 0

    def finish(self, place: Path, *words: str, last: str = "evaluate") -> int:
        """The command, undisturbed, to its end. Raises AssertionError with what it said when it does not end well."""
        code = waited(self.start(place, *words, last=last))
        assert code == 0, f"exit code {code}: {said(place)}"
        return code


class ForkedWorker:
    """What ``subprocess.Popen`` is to ``launch``: a stage's process, forked from one that has imported everything."""

    fault: Fault | None = None

    def __init__(self, words: list[str], **_: Any) -> None:
        _, _, _, stage, request, store, key, parent = words
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self.body(stage, Path(request), Path(store), key, int(parent)))
        self.code: int | None = None

    def body(self, stage: str, request: Path, store: Path, key: str, parent: int) -> int:
        """The worker's exit code."""
        os.setsid()
        try:
            if self.fault is not None:
                type(self).fault(stage)  # type: ignore[misc]
            return worker.main(stage, request, store, key, parent)
        except SystemExit as leaving:
            return int(leaving.code or 0)
        except BaseException:  # noqa: BLE001 - as above
            traceback.print_exc()
            return 1

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            else:
                time.sleep(0.005)
        return self.code

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGKILL)


def waited(pid: int, patience: float = PATIENCE_S) -> int:
    """A command's exit code. Raises AssertionError when it does not end in time; it is killed then."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the command did not end in {patience} seconds")


def said(place: Path) -> str:
    """The end of what the commands in a directory printed."""
    return (place / "out.txt").read_text()[-1000:]


def result(place: Path) -> dict[str, Any]:
    """Everything about a finished run that must be equal to the bit."""
    log_path = place / "run"
    found, wrong = checkpoint_state.latest(log_path)
    assert found is not None, f"no checkpoint is whole: {wrong}"
    assert not wrong, f"damaged: {wrong}"
    return {
        "journal": [comparable(row) for row in journal.read(log_path / run_dir.METRICS)],
        "samples": journal.read(log_path / run_dir.SAMPLES),
        "step": found.step,
        "weights": fingerprint.of_file(found.path / checkpoint_state.WEIGHTS),
        "optimizer": fingerprint.of_file(found.path / checkpoint_state.OPTIMIZER),
        "final": fingerprint.of_file(log_path / run_dir.FINAL / "model.safetensors"),
        "adapter": fingerprint.of_file(log_path / run_dir.ADAPTER / "adapter_model.safetensors"),
        "checkpoints": [row["name"] for row in journal.read(log_path / run_dir.CHECKPOINTS)][-2:],
        "reference": sorted(
            fingerprint.of_file(path) for path in (place / "runs/store/score_reference").glob("*/*.safetensors")
        ),
        "evaluations": sorted(
            json.dumps(json.loads(path.read_text())["metrics"], sort_keys=True)
            for path in (place / "runs/store/evaluate").glob("*/record.json")
        ),
    }


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A journal's line without the clock."""
    return {name: value for name, value in row.items() if not name.startswith(TIMES)}


def leftovers(place: Path) -> list[str]:
    """What a finished run must not leave: drafts, locks, half-written files."""
    doubtful = [path for path in place.rglob(".*") if path.name != "."]
    return [str(path.relative_to(place)) for path in doubtful]


def processes(place: Path) -> list[int]:
    """Living processes whose open files are in a directory: a worker that nobody waits for."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and any(link.startswith(str(place)) for link in open_files(pid))]


def open_files(pid: int) -> list[str]:
    """Where a process's descriptors point; one that closes while they are read is left out, the others are not."""
    found = []
    with suppress(OSError):  # the process ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(link.readlink()))
    return found


def limit_files(size: int) -> Fault:
    """No file of the training process may grow beyond so many bytes."""

    def fault(stage: str) -> None:
        if stage == "train":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return fault


def jumping_clock(chance: random.Random) -> Fault:
    """The wall clock goes back and forth by days."""

    def fault(stage: str) -> None:
        true = time.time
        time.time = lambda: true() + chance.choice((-1e6, 0.0, 1e6))

    return fault
