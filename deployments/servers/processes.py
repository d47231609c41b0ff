"""Service processes: servers and workers that are started, stopped, killed and restarted."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dpo_core.errors import TrackingError

HOST = "127.0.0.1"
START_UP_S, STOPPING_S, POLL_S = 120.0, 20.0, 0.2


@dataclass
class Service:
    """A process with its log. ``ready``: whether it serves yet. ``user``: user it runs as, None for the current one."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Start the process and wait until it serves.

        Raises TrackingError when it ends, or does not serve within ``START_UP_S``.
        """
        with self.log.open("ab") as log:
            # Popen needs root's rights for these arguments, even for the current user.
            identity = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent if self.user is None else "/",
                start_new_session=True,
                **identity,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_UP_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self.failure()
            time.sleep(POLL_S)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Send ``stop_signal``, then SIGKILL after ``STOPPING_S``; kill what is left of its process group."""
        if self.process is None:
            return
        for stop_signal in (self.stop_signal, signal.SIGKILL):
            if self.alive():
                self.process.send_signal(stop_signal)
                try:
                    self.process.wait(STOPPING_S)
                except subprocess.TimeoutExpired:
                    continue
        self.sweep()

    def kill(self) -> None:
        """Kill the process and all its children at once, as if the computer lost power."""
        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self.process.pid)
                for child in [process, *process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            self.process.wait(STOPPING_S)

    def sweep(self) -> None:
        """Kill what is left of the process group."""
        with suppress(ProcessLookupError):
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Stop the process, then start it with the same command."""
        self.stop()
        self.start()

    def failure(self) -> TrackingError:
        """The error for a service that ended or does not answer, with the last line of its log; stops the service."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        code = self.process.poll() if self.process else None
        found = "does not answer" if code is None else f"ended with exit code {code}"
        self.stop()
        return TrackingError(
            f"{self.name} {found}: {lines[-1] if lines else 'no output'}.",
            f"A service serves within {START_UP_S:.0f} seconds of its start.",
            f"Its log is {self.log}.",
        )


def free_port(preferred: int = 0) -> int:
    """The preferred port of the loopback device, or any free one when that is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise TrackingError(
        f"{HOST} has no free port.", "Every server needs one.", "Stop a program that listens on the loopback device."
    )
