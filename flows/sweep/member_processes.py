"""Worker pool for the members of a sweep: a process per member, early stopping, and a clean stop on interrupts."""

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
from flows.sweep.early_stop import early_stop_reason
from flows.sweep.sweep_plan import Member

POLL_S, GRACE_S = 1.0, 150.0
INTERRUPTED, FAILED = "stopped", "failed"


@dataclass(slots=True)
class RunningMember:
    """A member and its process; ``stop_reason`` is set once the member is stopped early."""

    member: Member
    process: "subprocess.Popen[bytes]"
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class MemberResult:
    """Result of a member. ``state``: done, stopped early, stopped (interrupted) or failed; ``reason``: why not done."""

    member: Member
    state: str
    reason: str = ""
    outcome: PipelineOutcome | None = None


@dataclass(slots=True)
class WorkerPool:
    """Runs the members of a sweep, each in a process of its own.

    ``directory`` holds the members' requests, outcomes and logs. ``on_poll`` is called with a member every POLL_S
    seconds while it runs and once when it has ended; ``report`` is called with each line to print.
    """

    members: Sequence[Member]
    directory: Path
    environment: Mapping[str, str]
    on_poll: Callable[[Member], None]
    report: Callable[[str], None]
    running: list[RunningMember] = field(default_factory=list)
    results: dict[str, MemberResult] = field(default_factory=dict)

    def run(self, at_once: int, stop_after: float | None) -> list[MemberResult]:
        """Run all members, at most ``at_once`` at the same time; the results are in the order of the members.

        ``stop_after``: share of the steps after which a member may be stopped early, None for never. Any exception
        stops the running members as Ctrl-C does, and is raised again when their checkpoints are saved.
        """
        waiting = [member for member in self.members if not self.was_stopped_early(member)]
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.start(waiting.pop(0))
                time.sleep(POLL_S)
                for running in list(self.running):
                    self.poll(running, stop_after)
        except BaseException:
            self.stop_all()
            raise
        return [self.results[member.name] for member in self.members]

    def was_stopped_early(self, member: Member) -> bool:
        """Whether a member was stopped early before this sweep was interrupted; it is not started again."""
        note = self.file(member, "stopped")
        if note.is_file():
            self.results[member.name] = MemberResult(member, "stopped early", note.read_text())
        return note.is_file()

    def file(self, member: Member, kind: str) -> Path:
        """Path of a member's file of this kind (suffix), beside the member's run directory."""
        return self.directory / f"{member.name}.{kind}"

    def start(self, member: Member) -> None:
        """Start a member's process, with its output in the member's log file."""
        request, outcome = self.file(member, "recipe.json"), self.file(member, "outcome.json")
        request.write_text(member.recipe.model_dump_json(indent=1))
        outcome.unlink(missing_ok=True)
        command = [sys.executable, "-m", "flows.sweep.sweep_worker", str(request), str(outcome)]
        with self.file(member, "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(RunningMember(member, process))
        self.report(f"{member.name}: started, log in {self.file(member, 'log')}")

    def poll(self, running: RunningMember, stop_after: float | None) -> None:
        """Record the result of a member that has ended, or stop a running one if the early-stop rule says so."""
        member, code = running.member, running.process.poll()
        if code is None:
            self.on_poll(member)
            if stop_after is not None and running.stop_reason is None:
                running.stop_reason = self.stop_reason(member, stop_after)
                if running.stop_reason:
                    running.process.send_signal(signal.SIGINT)
            return
        self.running.remove(running)
        self.on_poll(member)
        self.results[member.name] = result = self.result(running, code)
        self.report(f"{member.name}: {result.state}{f' ({result.reason})' if result.reason else ''}")

    def stop_reason(self, member: Member, stop_after: float) -> str | None:
        """The reason to stop a member early, None if it should continue."""
        others = [read_journal(other) for other in self.members if other is not member]
        return early_stop_reason(read_journal(member), others, stop_after)

    def result(self, running: RunningMember, code: int) -> MemberResult:
        """The result of a member whose process ended with exit code ``code``."""
        member, outcome = running.member, self.file(running.member, "outcome.json")
        if code == 0 and outcome.is_file():
            return MemberResult(member, "done", outcome=PipelineOutcome.model_validate_json(outcome.read_text()))
        if running.stop_reason and code == StoppedError.exit_code:
            self.file(member, "stopped").write_text(running.stop_reason)
            return MemberResult(member, "stopped early", running.stop_reason)
        state = INTERRUPTED if code == StoppedError.exit_code else FAILED
        return MemberResult(member, state, last_log_line(self.file(member, "log")) or f"exit code {code}")

    def stop_all(self) -> None:
        """Interrupt the members and wait GRACE_S seconds for their checkpoints; on a second Ctrl-C, end them now."""
        deadline = time.monotonic() + GRACE_S
        signals = [signal.SIGINT, signal.SIGINT, signal.SIGKILL]
        for signal_number in signals:
            for running in self.running:
                if running.process.poll() is None:
                    os.kill(running.process.pid, signal_number)
            try:
                for running in self.running:
                    running.process.wait(max(0.0, deadline - time.monotonic()))
                return
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                continue


def read_journal(member: Member) -> list[StepMetrics]:
    """The steps in a member's journal so far."""
    return journal.read_steps(member.log_path / METRICS)


def last_log_line(path: Path) -> str:
    """The last error in a member's log, else its last line."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")
