"""Checkpoint writer: writes checkpoints in a background thread and removes old ones."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpo_core.cache import atomic_files
from dpo_core.config.recipe import TrainSettings
from dpo_core.config.spelling import did_you_mean
from dpo_core.errors import RecipeError, TrainingError
from dpo_core.records import StepMetrics
from dpo_core.train.checkpoint import checkpoint_state
from dpo_core.train.checkpoint.checkpoint_state import Snapshot

METRIC = "best_metric"


class CheckpointWriter:
    """Writes snapshots in the background, at most one at a time; a failed write is reported at the next step.

    Leaving the block waits for a pending write. ``say`` prints a line for the user.
    """

    def __init__(self, log_path: Path, train: TrainSettings, say: Callable[[str], None]) -> None:
        self.log_path, self.train, self.say = log_path, train, say
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: tuple[int, Future[None]] | None = None
        self.last = time.monotonic()
        checkpoints = checkpoint_state.newest_first(log_path) if train.best_metric else []
        self.best = max(saved_values(checkpoints, train.best_metric or ""), default=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True)

    def due(self, step: int) -> bool:
        """Whether ``save_every`` or ``save_every_minutes`` asks for a checkpoint after this step."""
        minutes = self.train.save_every_minutes
        by_clock = minutes > 0 and time.monotonic() - self.last >= minutes * 60
        return by_clock or (self.train.save_every > 0 and step % self.train.save_every == 0)

    def is_best(self, metrics: StepMetrics) -> bool:
        """Whether ``best_metric`` was measured at this step, and is better than at any that was saved before."""
        facts = best_metric_facts(self.train.best_metric, metrics)
        if not facts:
            return False
        value = signed_value(self.train.best_metric or "", facts[METRIC])
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def save(self, snapshot: Snapshot) -> None:
        """Start writing a snapshot after any pending write has finished."""
        self.wait()
        self.last = time.monotonic()
        self.pending = snapshot.step, self.pool.submit(self.write, snapshot)

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot in this thread, then remove old checkpoints (:func:`prune`)."""
        checkpoint_state.write(self.log_path, snapshot)
        prune(self.log_path, self.train)

    def check(self) -> None:
        """Raise or report a failed write without waiting for a pending one."""
        if self.pending and self.pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending write.

        Raises TrainingError when the disk refused it, unless on_save_error=continue.
        """
        if self.pending is None:
            return
        (step, writing), self.pending = self.pending, None
        try:
            writing.result()
        except Exception as error:
            cause = atomic_files.disk_error_in(error)
            if cause is None:
                raise
            refused = write_error(self.log_path, step, cause)
            if self.train.on_save_error == "stop":
                raise refused from error
            self.say(f"{refused.found} {refused.rule} The run goes on (on_save_error=continue).")


def write_error(log_path: Path, step: int, error: OSError) -> TrainingError:
    """The error for a checkpoint that the disk refused."""
    before = checkpoint_state.newest_first(log_path)
    stands = f"The one of step {int(before[0].name)} stands." if before else "There is none yet."
    return TrainingError(
        f"The checkpoint of step {step} could not be written: {error.strerror or error}.",
        stands,
        "Make room and run the same command again.",
    )


def prune(log_path: Path, train: TrainSettings) -> None:
    """Remove all checkpoints but the latest ``keep_checkpoints`` and the best by ``best_metric``."""
    if not train.keep_checkpoints:
        return
    checkpoints = checkpoint_state.newest_first(log_path)
    best = best_checkpoint(checkpoints, train.best_metric) if train.best_metric else None
    for path in checkpoints[train.keep_checkpoints :]:
        if path != best:
            doomed = path.with_name(f".{path.name}.old")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def best_checkpoint(checkpoints: list[Path], metric: str) -> Path | None:
    """The checkpoint with the best value of a metric (with ``-`` before its name: the lowest); the latest of equals."""
    values = [(value, path) for path in checkpoints for value in saved_values([path], metric)]
    return max(values, key=lambda value: value[0], default=(0.0, None))[1]


def saved_values(checkpoints: list[Path], metric: str) -> list[float]:
    """Values of a metric in checkpoints that have it, higher being better."""
    facts = [state.get(METRIC, {}) for path in checkpoints if (state := checkpoint_state.read_state(path))]
    return [signed_value(metric, values) for values in facts if metric.removeprefix("-") in values]


def signed_value(metric: str, values: dict[str, float]) -> float:
    """A metric's value, higher being better: negated if the name begins with ``-``."""
    return -values[metric[1:]] if metric.startswith("-") else values[metric]


def check_best_metric(metric: str | None, metrics: StepMetrics) -> None:
    """Raises RecipeError when ``best_metric`` is not among the first metrics of its kind: held-out metrics are measured
    before the first step (step 0), training metrics in step 1."""
    name = (metric or "").removeprefix("-")
    if name in metrics.values or metrics.step != (0 if name.startswith("test/") else 1) or not name:
        return
    found = f"best_metric={metric} is not measured in this run."
    rule = "test/… are measured every eval_every steps, test/ifeval_… every infrequent_eval_every (infrequent_prompts)."
    raise RecipeError(
        found, rule, did_you_mean(name, metrics.values, "Check the name and the cadence.", most=3, cutoff=0.6)
    )


def best_metric_facts(metric: str | None, metrics: StepMetrics) -> dict[str, Any]:
    """The field of ``state.json`` that :func:`best_checkpoint` reads; empty if the step did not measure the metric."""
    name = (metric or "").removeprefix("-")
    return {METRIC: {name: metrics.values[name]}} if name in metrics.values else {}
