"""The members' processes: so many at once, watched, stopped when hopeless, and stopped when we are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.errors import StoppedError
from dpo_core.records import StepMetrics
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import METRICS
from flows.pipeline import PipelineOutcome
from flows.sweep.early_stop import hopeless
from flows.sweep.sweep_plan import Member

POLL_S, GRACE_S = 1.0, 150.0
INTERRUPTED, FAILED = "stopped", "failed"


@dataclass(slots=True)
class Running:
    """A member and its process; ``why`` it was told to stop, if it was."""

    member: Member
    process: "subprocess.Popen[bytes]"
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a member: done, stopped early, or failed; ``told`` says why."""

    member: Member
    state: str
    told: str = ""
    outcome: PipelineOutcome | None = None


@dataclass(slots=True)
class WorkerPool:
    """All members of a sweep. ``watch`` is called with a member now and then while it runs, and when it has ended."""

    members: Sequence[Member]
    place: Path
    environment: Mapping[str, str]
    watch: Callable[[Member], None]
    say: Callable[[str], None]
    running: list[Running] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)

    def run(self, at_once: int, stop_after: float | None) -> list[Result]:
        """Run all, in their order; the results are in that order too.

        Whatever interrupts it stops the members as Ctrl-C does, and waits for their checkpoints.
        """
        waiting = [member for member in self.members if not self.known(member)]
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.start(waiting.pop(0))
                time.sleep(POLL_S)
                for one in list(self.running):
                    self.look(one, stop_after)
        except BaseException:
            self.stop_all()
            raise
        return [self.results[member.name] for member in self.members]

    def known(self, member: Member) -> bool:
        """Whether a member was stopped as hopeless before this sweep was interrupted; it stays so."""
        note = self.file(member, "stopped")
        if note.is_file():
            self.results[member.name] = Result(member, "stopped early", note.read_text())
        return note.is_file()

    def file(self, member: Member, kind: str) -> Path:
        """A member's file beside its directory."""
        return self.place / f"{member.name}.{kind}"

    def start(self, member: Member) -> None:
        """Start a member's process; what it says goes to a file."""
        request, outcome = self.file(member, "recipe.json"), self.file(member, "outcome.json")
        request.write_text(member.recipe.model_dump_json(indent=1))
        outcome.unlink(missing_ok=True)
        command = [sys.executable, "-m", "flows.sweep.sweep_worker", str(request), str(outcome)]
        with self.file(member, "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(Running(member, process))
        self.say(f"{member.name}: started, {self.file(member, 'log')}")

    def look(self, one: Running, stop_after: float | None) -> None:
        """See whether a member has ended, or should."""
        code = one.process.poll()
        if code is None:
            self.watch(one.member)
            if stop_after is not None and one.why is None and (why := self.verdict(one.member, stop_after)):
                one.why = why
                one.process.send_signal(signal.SIGINT)
            return
        self.running.remove(one)
        self.watch(one.member)
        self.results[one.member.name] = made = self.result(one, code)
        self.say(f"{one.member.name}: {made.state}{f' ({made.told})' if made.told else ''}")

    def verdict(self, member: Member, stop_after: float) -> str | None:
        """Why a member is hopeless, if it is."""
        others = [steps(other) for other in self.members if other is not member]
        return hopeless(steps(member), others, stop_after)

    def result(self, one: Running, code: int) -> Result:
        """What a process that has ended left behind."""
        outcome = self.file(one.member, "outcome.json")
        if code == 0 and outcome.is_file():
            return Result(one.member, "done", outcome=PipelineOutcome.model_validate_json(outcome.read_text()))
        if one.why and code == StoppedError.exit_code:
            self.file(one.member, "stopped").write_text(one.why)
            return Result(one.member, "stopped early", one.why)
        state = INTERRUPTED if code == StoppedError.exit_code else FAILED
        return Result(one.member, state, last_line(self.file(one.member, "log")) or f"exit code {code}")

    def stop_all(self) -> None:
        """Ctrl-C to each, time for a checkpoint; a second interrupt is handed on, and they end at once."""
        end = time.monotonic() + GRACE_S
        signals = [signal.SIGINT, signal.SIGINT, signal.SIGKILL]
        for sign in signals:
            for one in self.running:
                if one.process.poll() is None:
                    os.kill(one.process.pid, sign)
            try:
                for one in self.running:
                    one.process.wait(max(0.0, end - time.monotonic()))
                return
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                continue


def steps(member: Member) -> list[StepMetrics]:
    """A member's journal as far as it is written."""
    return journal.read_steps(member.log_path / METRICS)


def last_line(path: Path) -> str:
    """The last thing that a member said."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")
