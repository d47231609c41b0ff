"""Journal follower: a thread that logs a training run's journal to MLflow while the run trains."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dpo_core.errors import TrackingError
from dpo_core.train.checkpoint.run_dir import METRICS
from flows.tracking.mlflow_run import RunHandle, log_journal, log_system_metrics
from flows.tracking.system_metrics import SystemMetrics

logger = logging.getLogger(__name__)

PAUSE_S, MAX_PAUSE_S = 2.0, 30.0
MAX_CPU_SHARE = 0.05
JOIN_TIMEOUT_S = 60.0


class Follower:
    """A thread that logs new steps of the journal, and system metrics, while the ``with`` block runs.

    ``open_run`` opens the MLflow run, and raises TrackingError while MLflow does not answer. ``pause`` is the
    minimum time between two reads of the journal, in seconds.

    No error of MLflow is raised into the block. When MLflow becomes unavailable the thread warns once; when it answers
    again the missing steps are logged. Leaving the block logs the rest, within ``JOIN_TIMEOUT_S`` seconds.
    """

    def __init__(self, open_run: Callable[[], RunHandle], log_path: Path, pause: float = PAUSE_S) -> None:
        self.open_run, self.log_path, self.pause = open_run, log_path, pause
        self.handle: RunHandle | None = None
        self.offline = False
        self.logged_state: tuple[int, int] | None = None
        self.system_metrics = SystemMetrics()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.follow, name="mlflow-projection", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.thread.join(JOIN_TIMEOUT_S)

    def follow(self) -> None:
        """Log new steps until the block ends; a long journal is read less often, to limit the CPU time."""
        stopping = False
        while not stopping:
            stopping = self.stopping.is_set()
            started = time.monotonic()
            self.catch_up()
            spent = 0.0 if self.offline else time.monotonic() - started
            self.stopping.wait(0 if stopping else max(self.pause, min(spent / MAX_CPU_SHARE, MAX_PAUSE_S)))

    def catch_up(self) -> None:
        """Log what is new since the last call; open the run as soon as MLflow answers."""
        state = self.journal_state()
        changed = state is not None and state != self.logged_state
        try:
            self.system_metrics.sample()
            if self.handle and not (changed or self.system_metrics.pending):
                return
            self.handle = self.handle or self.open_run()
            if changed:
                log_journal(self.handle, self.log_path)
            log_system_metrics(self.handle, self.system_metrics)
        # Training continues whatever MLflow raises: the journal is complete and can be logged later.
        except Exception as error:  # noqa: BLE001
            self.warn(error)
            return
        self.logged_state = state
        if self.offline:
            logger.info("MLflow answers again; its run is up to date.")
        self.offline = False

    def journal_state(self) -> tuple[int, int] | None:
        """Return size and modification time (ns) of the journal, None before it exists."""
        try:
            status = (self.log_path / METRICS).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def warn(self, error: Exception) -> None:
        """Warn once each time MLflow becomes unavailable."""
        if not self.offline:
            cause = error.found if isinstance(error, TrackingError) else repr(error)
            logger.warning("%s Training goes on; MLflow gets the missing steps when it answers again.", cause)
        self.offline = True
