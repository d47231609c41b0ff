"""Servers and workers as processes of ours: started, waited for, stopped politely, killed, started again."""

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
    """One process with its log; ``ready`` says whether it serves yet, ``user`` whom it runs as (None: ourselves)."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises TrackingError when it ends, or does not serve in time.
        """
        with self.log.open("ab") as log:
            # Only a user's name needs the rights to become that user.
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
                raise self.died()
            time.sleep(POLL_S)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and after a while make it; what it started goes with it."""
        if self.process is None:
            return
        for sign in (self.stop_signal, signal.SIGKILL):
            if self.alive():
                self.process.send_signal(sign)
                try:
                    self.process.wait(STOPPING_S)
                except subprocess.TimeoutExpired:
                    continue
        self.sweep()

    def kill(self) -> None:
        """End it and all that it started at once, as a computer that loses its power."""
        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                ours = psutil.Process(self.process.pid)
                for one in [ours, *ours.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            self.process.wait(STOPPING_S)

    def sweep(self) -> None:
        """Kill what is left of its process group."""
        with suppress(ProcessLookupError):
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Stop it, then start it with the same command."""
        self.stop()
        self.start()

    def died(self) -> TrackingError:
        """The error for a service that is not there, with the last thing that it said."""
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        code = self.process.poll() if self.process else None
        found = "does not answer" if code is None else f"ended with exit code {code}"
        self.stop()
        return TrackingError(
            f"{self.name} {found}: {said[-1] if said else 'it said nothing'}.",
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
    raise TrackingError(f"{HOST} has no free port.", "A server listens on a port of its own.", "Stop other programs.")
