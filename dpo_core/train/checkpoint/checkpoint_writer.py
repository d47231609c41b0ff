"""When checkpoints are written, behind the training's back, and how many of them stay."""

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
    """Writes snapshots in the background, at most one at a time; a failure is told at the next step.

    Leaving the block waits for what is being written. ``say`` tells the user a line.
    """

    def __init__(self, log_path: Path, train: TrainSettings, say: Callable[[str], None]) -> None:
        self.log_path, self.train, self.say = log_path, train, say
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: tuple[int, Future[None]] | None = None
        self.last = time.monotonic()
        known = checkpoint_state.newest_first(log_path) if train.best_metric else []
        self.best = max(saved_values(known, train.best_metric or ""), default=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after this step."""
        minutes = self.train.save_every_minutes
        by_clock = minutes > 0 and time.monotonic() - self.last >= minutes * 60
        return by_clock or (self.train.save_every > 0 and step % self.train.save_every == 0)

    def is_best(self, metrics: StepMetrics) -> bool:
        """Whether ``best_metric`` was measured at this step, and is better than at any that was saved before."""
        told = best_metric_facts(self.train.best_metric, metrics)
        if not told:
            return False
        value = signed_value(self.train.best_metric or "", told[METRIC])
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def save(self, held: Snapshot) -> None:
        """Begin to write a snapshot, after the one before is done."""
        self.settle()
        self.last = time.monotonic()
        self.pending = held.step, self.pool.submit(self.write, held)

    def write(self, held: Snapshot) -> None:
        """Write a snapshot now, and remove the checkpoints that it makes superfluous."""
        checkpoint_state.write(self.log_path, held)
        prune(self.log_path, self.train)

    def check(self) -> None:
        """Tell of a failed write as soon as it is known, without waiting."""
        if self.pending and self.pending[1].done():
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written.

        Raises TrainingError when the disk did not take it, unless the recipe lets the run go on.
        """
        if self.pending is None:
            return
        (step, writing), self.pending = self.pending, None
        try:
            writing.result()
        except Exception as error:
            cause = atomic_files.from_disk(error)
            if cause is None:
                raise
            refused = write_error(self.log_path, step, cause)
            if self.train.on_save_error == "stop":
                raise refused from error
            self.say(f"{refused.found} {refused.rule} The run goes on (on_save_error=continue).")


def write_error(log_path: Path, step: int, error: OSError) -> TrainingError:
    """The error for a checkpoint that the disk did not take."""
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
    known = checkpoint_state.newest_first(log_path)
    best = best_checkpoint(known, train.best_metric) if train.best_metric else None
    for path in known[train.keep_checkpoints :]:
        if path != best:
            doomed = path.with_name(f".{path.name}.old")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def best_checkpoint(known: list[Path], metric: str) -> Path | None:
    """The checkpoint with the best value of a metric, less being better behind a minus; the latest of equals."""
    values = [(value, path) for path in known for value in saved_values([path], metric)]
    return max(values, key=lambda value: value[0], default=(0.0, None))[1]


def saved_values(known: list[Path], metric: str) -> list[float]:
    """What checkpoints noted of a metric, the more the better; those that noted nothing of it are left out."""
    told = [state.get(METRIC, {}) for path in known if (state := checkpoint_state.read_state(path))]
    return [signed_value(metric, values) for values in told if metric.removeprefix("-") in values]


def signed_value(metric: str, values: dict[str, float]) -> float:
    """A metric's value, the more the better: behind a minus its negative."""
    return -values[metric[1:]] if metric.startswith("-") else values[metric]


def check_best_metric(metric: str | None, metrics: StepMetrics) -> None:
    """Raises RecipeError when ``best_metric`` is not among the first metrics of its kind: held-out ones come before the
    first step (0), training's own with it."""
    name = (metric or "").removeprefix("-")
    if name in metrics.values or metrics.step != (0 if name.startswith("test/") else 1) or not name:
        return
    found = f"best_metric={metric} is not measured in this run."
    rule = "test/… are measured every eval_every steps, test/ifeval_… every infrequent_eval_every (infrequent_prompts)."
    raise RecipeError(
        found, rule, did_you_mean(name, metrics.values, "Check the name and the cadence.", most=3, cutoff=0.6)
    )


def best_metric_facts(metric: str | None, metrics: StepMetrics) -> dict[str, Any]:
    """What a checkpoint notes of its step for :func:`best_checkpoint`."""
    name = (metric or "").removeprefix("-")
    return {METRIC: {name: metrics.values[name]}} if name in metrics.values else {}
