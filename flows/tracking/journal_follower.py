"""Project a run while its process trains: in the background, and never in the way."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dpo_core.errors import TrackingError
from dpo_core.train.checkpoint.run_dir import METRICS
from flows.tracking.mlflow_run import RunHandle, log_machine, project
from flows.tracking.system_metrics import SystemMetrics

logger = logging.getLogger(__name__)

PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
MOST_OF_A_CORE = 0.05
LEAVING_S = 60.0


class Follower:
    """A thread of the flow's process, from ``with`` to the block's end, that logs what the journal has gained, and what
    the computer does meanwhile.

    ``opened`` gives the run, and raises TrackingError as long as MLflow does not answer.

    Nothing of MLflow is raised into the block. When MLflow goes away there is one warning, and when it is back the
    steps that it missed follow. Leaving the block projects the rest, waiting ``LEAVING_S`` seconds at most.
    """

    def __init__(self, opened: Callable[[], RunHandle], log_path: Path, pause: float = PAUSE_S) -> None:
        self.opened, self.log_path, self.pause = opened, log_path, pause
        self.handle: RunHandle | None = None
        self.away = False
        self.seen: tuple[int, int] | None = None
        self.machine = SystemMetrics()
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self.follow, name="mlflow-projection", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leaving.set()
        self.thread.join(LEAVING_S)

    def follow(self) -> None:
        """Project again and again; a long journal is read less often, so that reading it costs little."""
        leaving = False
        while not leaving:
            leaving = self.leaving.is_set()
            started = time.monotonic()
            self.catch_up()
            spent = 0.0 if self.away else time.monotonic() - started
            self.leaving.wait(0 if leaving else max(self.pause, min(spent / MOST_OF_A_CORE, LONGEST_PAUSE_S)))

    def catch_up(self) -> None:
        """Project what has come since the last time; the run is opened as soon as it can be."""
        state = self.state()
        news = state is not None and state != self.seen
        try:
            self.machine.look()
            if self.handle and not (news or self.machine.waiting):
                return
            self.handle = self.handle or self.opened()
            if news:
                project(self.handle, self.log_path)
            log_machine(self.handle, self.machine)
        # Whatever it is that MLflow does, training goes on: the journal is whole and can be projected later.
        except Exception as error:  # noqa: BLE001
            self.missed(error)
            return
        self.seen = state
        if self.away:
            logger.info("MLflow is back; the run there is up to date.")
        self.away = False

    def state(self) -> tuple[int, int] | None:
        """Size and time of the journal, None before there is one."""
        try:
            told = (self.log_path / METRICS).stat()
        except FileNotFoundError:
            return None
        return told.st_size, told.st_mtime_ns

    def missed(self, error: Exception) -> None:
        """Warn once for every time that MLflow goes away."""
        if not self.away:
            cause = error.found if isinstance(error, TrackingError) else repr(error)
            logger.warning("%s Training goes on; what MLflow misses is projected when it is back.", cause)
        self.away = True
