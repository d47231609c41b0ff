"""Prefect tasks, one around each stage: Prefect's UI shows its state, retries and duration.

MLflow is imported only where it is used: importing it takes seconds, which pass while the first stages run.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from dpo_core.config.recipe import Recipe
from dpo_core.data.report import TEXT
from dpo_core.errors import DiedError
from dpo_core.pipeline.pipeline import EVALUATE_BASE, Step
from dpo_core.records import ModelVersion, Promotion, Record, RenderedSet
from dpo_core.stages.stage import StageResult

if TYPE_CHECKING:
    from flows.recording.training_run import TrainingRun
    from flows.registry.versions import Candidate

R = TypeVar("R", bound=Record)

RETRY_DELAYS_S = [5.0, 60.0]


def run_as_task(name: str, run: Callable[[], StageResult[R]]) -> R:
    """Run a stage as a Prefect task and return its record; the task of a cached output ends in the state Cached.

    Prefect's own task cache is off: it does not notice a deleted output, and the store does.
    """

    @task(
        name=name,
        cache_policy=NO_CACHE,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=is_retryable,
    )
    def stage_task() -> State[R]:
        result = run()
        print_and_log(f"{name}: {'cached' if result.cached else 'done'}")
        return Completed(name="Cached" if result.cached else None, data=result.record)

    return stage_task().result()


def is_retryable(_: Task[Any, Any], __: TaskRun, state: State[Any]) -> bool:
    """Retry only a killed process: a wrong setting or a NaN loss would fail again."""
    try:
        state.result()
    except DiedError:
        return True
    except BaseException:  # noqa: BLE001 - any other error is final
        return False
    return False


def print_and_log(line: str) -> None:
    """Print a line on the terminal and write it to the flow run's log."""
    print(line, flush=True)
    get_run_logger().info(line)


class StageTasks:
    """Prefect tasks of one pipeline run, with the MLflow run that follows its training.

    An error inside the block closes the MLflow run if training had completed; the same command reopens it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.records: dict[str, Any] = {}

    @cached_property
    def training_run(self) -> "TrainingRun":
        """The MLflow run of the training run."""
        from flows.recording.training_run import TrainingRun  # lazy: mlflow

        return TrainingRun(self.recipe)

    def __enter__(self) -> "StageTasks":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and "train" in self.records:
            self.training_run.close_after_error(self.records["train"], error)

    def run(self, step: Step) -> Any:
        """Run one step as a task and return its record."""
        if step.title == EVALUATE_BASE:
            with self.log_training_output():
                record = run_as_task(step.stage.name, step.run)
        elif step.stage.name == "train":
            record = run_as_task("train", partial(self.train, step))
        else:
            record = run_as_task(step.stage.name, step.run)
        self.records[step.title] = record
        if isinstance(record, RenderedSet):
            print_and_log((record.path / TEXT).read_text())
        return record

    def train(self, step: Step) -> StageResult[Any]:
        """Run the stage ``train`` while MLflow follows its journal."""
        assert step.call is not None
        return step.run(self.training_run.follow_journal(step.call))

    def log_training_output(self) -> AbstractContextManager[None]:
        """Log what training wrote to MLflow, in the background while the block runs."""
        from flows.recording.log_artifacts import TrainingOutput  # lazy: mlflow

        checkpoint, pairs, rendered = (self.records[title] for title in ("train", "acquire", "render"))
        return self.training_run.log_in_background(TrainingOutput(checkpoint, pairs, rendered))

    def register(self, candidate: "Candidate") -> ModelVersion:
        """Log the run completely to MLflow and register its model as a version."""
        return run_as_task("register", lambda: self.training_run.register(candidate))

    def promote(self, candidate: "Candidate", version: ModelVersion) -> Promotion:
        """Decide about the champion; print and log the reason."""

        def decide() -> StageResult[Promotion]:
            promotion = self.training_run.promote(candidate, version)
            print_and_log(promotion.reason)
            return StageResult(promotion, False)

        return run_as_task("promote", decide)
