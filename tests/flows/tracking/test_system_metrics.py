"""System metrics: measured and logged with their time, and never mistaken for training steps."""

import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from dpo_core.config.recipe import Recipe
from flows.tracking import mlflow_run
from flows.tracking.journal_follower import Follower
from flows.tracking.mlflow_run import RunHandle
from flows.tracking.system_metrics import SystemMetrics
from tests.flows.fake import steps_of, wait_for, write_journal

CPU, MEMORY = "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"


def test_a_sample_matches_the_system() -> None:
    machine = SystemMetrics(interval_s=0.3)

    def work() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # a core at work
            machine.sample()

    thread = Thread(target=work)  # as the follower's: psutil counts a CPU's time since the thread's own last reading
    thread.start()
    thread.join()
    points = {point.key: point for point in machine.to_metrics(started_ms=0)}
    assert points[CPU].value > 50 / (psutil.cpu_count() or 1)
    assert points[MEMORY].value == pytest.approx(psutil.virtual_memory().used / 1e6, rel=0.2)


def test_samples_keep_their_distance_and_their_seconds_of_the_run() -> None:
    now = [1000.0]
    machine = SystemMetrics(interval_s=10, clock=lambda: now[0])
    for _ in range(26):
        machine.sample()
        now[0] += 1
    points = [point for point in machine.to_metrics(started_ms=990_000) if point.key == CPU]
    assert [(point.step, point.timestamp) for point in points] == [(20, 1_010_000), (30, 1_020_000)]


def test_the_follower_logs_them_and_the_journal_still_comes_whole(run: RunHandle, tmp_path: Path) -> None:
    follower = Follower(lambda: run, tmp_path, pause=0.01)
    follower.system_metrics = SystemMetrics(interval_s=0.05)
    with follower:
        write_journal(tmp_path, 5)
        # Seconds, not steps: they must not be taken for the journal's last one.
        run.client.log_metric(run.run_id, "system/gpu_0_utilization_percentage", 50, step=1000)
        wait_for(lambda: len(run.client.get_metric_history(run.run_id, CPU)) > 2)
        write_journal(tmp_path, 8)
    assert steps_of(run, "dpo_loss") == list(range(1, 9))
    assert mlflow_run.last_logged_step(run) == 8


@pytest.mark.parametrize("last", [0, 3])
def test_a_run_without_a_server_keeps_its_samples_for_later(recipe: Recipe, tmp_path: Path, last: int) -> None:
    handle: list[RunHandle] = []

    def open_run() -> RunHandle:
        if not handle:
            raise ConnectionError("not yet")
        return handle[0]

    follower = Follower(open_run, tmp_path, pause=0.01)
    follower.system_metrics = SystemMetrics(interval_s=0.05)
    write_journal(tmp_path, last)
    with follower:
        wait_for(lambda: len(follower.system_metrics.pending) > 2)
        handle.append(mlflow_run.open_run(recipe.track, recipe, "late", "1ate"))
        wait_for(lambda: len(handle[0].client.get_metric_history(handle[0].run_id, CPU)) > 2)
    assert steps_of(handle[0], "dpo_loss") == list(range(1, last + 1))
