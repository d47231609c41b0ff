"""Arena for fault injection: a small run with a known undisturbed result, run in forked processes.

Stages run in forked processes: torch is imported once, so that a trial takes one second instead of ten. A forked
process can be killed, limited and orphaned like any other.
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
    """Directories of trials. ``expected``: result of the undisturbed run, as :func:`result` returns it."""

    root: Path
    model: Path
    seed: int = 0
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def prepared(self) -> Path:
        """Directory in which the stages before training are done; copied for trials of training."""
        return self.root / "prepared"

    def build(self) -> None:
        """Run the stages before training in ``prepared``, then the whole pipeline undisturbed for ``expected``."""
        self.prepared.mkdir(parents=True)
        rows = [
            {"prompt": f"Tell me about story {n}.", "chosen": "Once upon a time. Thank you!", "rejected": f"No {n}."}
            for n in range(40)
        ]
        (self.prepared / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.finish(self.prepared, last="score_reference")
        undisturbed = self.fresh("undisturbed")
        self.finish(undisturbed)
        self.expected.update(result(undisturbed))

    def fresh(self, name: str, prepared: bool = True) -> Path:
        """A new directory for a trial, with or without the stages before training done."""
        directory = self.root / name
        shutil.rmtree(directory, ignore_errors=True)
        if prepared:
            shutil.copytree(self.prepared, directory)
        else:
            directory.mkdir()
            shutil.copy(self.prepared / "pairs.jsonl", directory)
        return directory

    def recipe(self, directory: Path, *words: str) -> Recipe:
        """Ten steps with LoRA, a checkpoint every second step."""
        settings = [
            f"dataset={directory / 'pairs.jsonl'}",
            f"model_name={self.model}",
            f"runs_dir={directory / 'runs'}",
            f"log_path={directory / 'run'}",
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
        return read_recipe(None, [*settings, *words])

    def start(self, directory: Path, *words: str, fault: Fault | None = None, last: str = "evaluate") -> int:
        """Start the command in its own process group; returns its pid."""
        pid = os.fork()
        if pid == 0:
            os._exit(self.command(directory, words, fault, last))
        return pid

    def command(self, directory: Path, words: tuple[str, ...], fault: Fault | None, last: str) -> int:
        """Body of the command's process; its output goes to ``out.txt``. Returns the exit code."""
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with (directory / "out.txt").open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        ForkedWorker.fault = fault
        launch.subprocess.Popen = ForkedWorker  # type: ignore[misc, assignment, attr-defined]
        try:
            run_command.run_up_to(self.recipe(directory, *words), last)
        except (DPOError, KeyboardInterrupt) as raised:
            error = raised if isinstance(raised, DPOError) else interrupted()
            print(f"error: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        except BaseException:  # noqa: BLE001 - the process ends here
            traceback.print_exc()
            return 1
        return 0

    def finish(self, directory: Path, *words: str, last: str = "evaluate") -> int:
        """Run the command undisturbed to its end. Raises AssertionError with its output unless it exits with 0."""
        code = wait_for_exit(self.start(directory, *words, last=last))
        assert code == 0, f"exit code {code}: {printed(directory)}"
        return code


class ForkedWorker:
    """Replacement of ``subprocess.Popen`` in ``launch``: forks a process that has imported everything already."""

    fault: Fault | None = None

    def __init__(self, words: list[str], **_: Any) -> None:
        _, _, _, stage, request, store, key, parent = words
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self.body(stage, Path(request), Path(store), key, int(parent)))
        self.code: int | None = None

    def body(self, stage: str, request: Path, store: Path, key: str, parent: int) -> int:
        """Body of the worker's process; returns its exit code."""
        os.setsid()
        try:
            if self.fault is not None:
                type(self).fault(stage)  # type: ignore[misc]
            return worker.main(stage, request, store, key, parent)
        except SystemExit as ending:
            return int(ending.code or 0)
        except BaseException:  # noqa: BLE001 - as above
            traceback.print_exc()
            return 1

    def wait(self, timeout: float | None = None) -> int:
        """Like ``Popen``'s method."""
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
        """Like ``Popen``'s method."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Like ``Popen``'s method."""
        self.send_signal(signal.SIGKILL)


def wait_for_exit(pid: int, patience: float = PATIENCE_S) -> int:
    """Wait for a command; returns its exit code. Kills it and raises AssertionError when it does not end in time."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the command did not end in {patience} seconds")


def printed(directory: Path) -> str:
    """The last 1000 characters that the commands in a directory printed."""
    return (directory / "out.txt").read_text()[-1000:]


def result(directory: Path) -> dict[str, Any]:
    """Everything of a finished run that must be equal to the bit."""
    log_path = directory / "run"
    checkpoint, damaged = checkpoint_state.latest(log_path)
    assert checkpoint is not None, f"no checkpoint is whole: {damaged}"
    assert not damaged, f"damaged: {damaged}"
    return {
        "journal": [comparable(row) for row in journal.read(log_path / run_dir.METRICS)],
        "samples": journal.read(log_path / run_dir.SAMPLES),
        "step": checkpoint.step,
        "weights": fingerprint.of_file(checkpoint.path / checkpoint_state.WEIGHTS),
        "optimizer": fingerprint.of_file(checkpoint.path / checkpoint_state.OPTIMIZER),
        "final": fingerprint.of_file(log_path / run_dir.FINAL / "model.safetensors"),
        "adapter": fingerprint.of_file(log_path / run_dir.ADAPTER / "adapter_model.safetensors"),
        "checkpoints": [row["name"] for row in journal.read(log_path / run_dir.CHECKPOINTS)][-2:],
        "reference": sorted(
            fingerprint.of_file(path) for path in (directory / "runs/store/score_reference").glob("*/*.safetensors")
        ),
        "evaluations": sorted(
            json.dumps(json.loads(path.read_text())["metrics"], sort_keys=True)
            for path in (directory / "runs/store/evaluate").glob("*/record.json")
        ),
    }


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the journal without the fields that depend on the clock."""
    return {name: value for name, value in row.items() if not name.startswith(TIMES)}


def leftovers(directory: Path) -> list[str]:
    """Hidden files in a directory: drafts, locks, half-written files. A finished run must leave none."""
    hidden = [path for path in directory.rglob(".*") if path.name != "."]
    return [str(path.relative_to(directory)) for path in hidden]


def processes(directory: Path) -> list[int]:
    """Pids of other processes with open files in a directory: workers without a parent."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [
        pid for pid in pids if pid != os.getpid() and any(path.startswith(str(directory)) for path in open_files(pid))
    ]


def open_files(pid: int) -> list[str]:
    """Targets of a process's file descriptors; a descriptor that closes meanwhile is left out."""
    targets = []
    with suppress(OSError):  # the process ended
        for target in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                targets.append(str(target.readlink()))
    return targets


def limit_files(size: int) -> Fault:
    """A fault: no file of the training process may grow beyond ``size`` bytes."""

    def fault(stage: str) -> None:
        if stage == "train":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return fault


def jumping_clock(chance: random.Random) -> Fault:
    """A fault: the wall clock jumps back and forth by days."""

    def fault(stage: str) -> None:
        real_time = time.time
        time.time = lambda: real_time() + chance.choice((-1e6, 0.0, 1e6))

    return fault
