"""System metrics during a run: CPU, memory and GPUs, as MLflow's own monitors measure them.

MLflow's own thread stops for good at the first failed request; here samples are kept until the server answers.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

SYSTEM = "system"  # the prefix that MLflow's UI expects
INTERVAL_S = 10.0
MAX_PENDING = 1000  # kept while the server does not answer: nearly three hours


class SystemMetrics:
    """Samples that are not logged yet, at most one every ``interval_s`` seconds; :meth:`sample` must be called."""

    def __init__(self, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.time) -> None:
        self.interval_s, self.clock = interval_s, clock
        self.monitors = available_monitors()
        self.last_time: float | None = None
        self.pending: list[tuple[float, dict[str, float]]] = []

    def sample(self) -> None:
        """Take a sample if the interval has passed.

        Call from one thread: CPU time is measured since that thread's previous call.
        """
        now = self.clock()
        if self.last_time is None:
            read_monitors(self.monitors)
            self.last_time = now
        if now - self.last_time < self.interval_s:
            return
        self.last_time = now
        self.pending = [*self.pending, (now, read_monitors(self.monitors))][-MAX_PENDING:]

    def to_metrics(self, started_ms: int) -> list[Metric]:
        """Return the samples as metrics whose step is the second of the run, so that a resumed run continues them.

        ``started_ms`` is the run's start in milliseconds since the epoch.
        """
        return [
            Metric(f"{SYSTEM}/{name}", value, round(at * 1000), max(0, round(at - started_ms / 1000)))
            for at, values in self.pending
            for name, value in values.items()
        ]


def available_monitors() -> list[Any]:
    """Return monitors of CPU and memory, and of the GPUs if there are any."""
    monitors: list[Any] = [CPUMonitor()]  # type: ignore[no-untyped-call]
    # ImportError without NVIDIA's library, RuntimeError without its driver or a GPU.
    with suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
    return monitors


def read_monitors(available_monitors: list[Any]) -> dict[str, float]:
    """Read every monitor once; values by metric name."""
    values: dict[str, float] = {}
    for monitor in available_monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return values
