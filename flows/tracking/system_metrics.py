"""What the computer does while a run trains: CPU, memory and GPUs, as MLflow's own monitors measure them.

MLflow's thread for this ends for ever at the first request that fails; here samples wait until the server is back.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

SYSTEM = "system"  # the prefix by which MLflow's UI knows them
EVERY_S = 10.0
MOST_SAMPLES = 1000  # that wait for a server: nearly three hours


class SystemMetrics:
    """Samples that wait to be logged, one every ``every`` seconds of those in which :meth:`look` is called."""

    def __init__(self, every: float = EVERY_S, clock: Callable[[], float] = time.time) -> None:
        self.every, self.clock = every, clock
        self.monitors = monitors()
        self.last: float | None = None
        self.waiting: list[tuple[float, dict[str, float]]] = []

    def look(self) -> None:
        """Take a sample if it is time for one; in one thread only, since whose last look a CPU's time is counted."""
        now = self.clock()
        if self.last is None:
            sample(self.monitors)
            self.last = now
        if now - self.last < self.every:
            return
        self.last = now
        self.waiting = [*self.waiting, (now, sample(self.monitors))][-MOST_SAMPLES:]

    def points(self, started_ms: int) -> list[Metric]:
        """What waits, as metrics whose step is the second of the run: a run that is continued goes on by it."""
        return [
            Metric(f"{SYSTEM}/{name}", value, round(at * 1000), max(0, round(at - started_ms / 1000)))
            for at, values in self.waiting
            for name, value in values.items()
        ]


def monitors() -> list[Any]:
    """CPU and memory, and the GPUs where there are some."""
    found: list[Any] = [CPUMonitor()]  # type: ignore[no-untyped-call]
    # ImportError without NVIDIA's library, RuntimeError without its driver or a GPU.
    with suppress(ImportError, RuntimeError):
        found.append(GPUMonitor())  # type: ignore[no-untyped-call]
    return found


def sample(monitors: list[Any]) -> dict[str, float]:
    """One reading of each."""
    told: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        told |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return told
