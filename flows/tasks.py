"""Tasks: one Prefect task around each stage, shown in Prefect's UI with its state, retries and time.

MLflow is imported inside the tasks that need it: its seconds pass while the first stages run.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
    from flows.registry.versions import Candidate

R = TypeVar("R", bound=Record)

RETRY_DELAYS_S = [5.0, 60.0]


def run_as_task(name: str, run: Callable[[], StageResult[R]]) -> R:
    """Run a stage as a Prefect task; a task whose output was already there ends in the state Cached.

    Prefect's own task cache is off: it would not notice that an output is gone, and the store does.
    """

    @task(
        name=name,
        cache_policy=NO_CACHE,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=worth_retrying,
    )
    def stage_task() -> State[R]:
        result = run()
        say(f"{name}: {'cached' if result.cached else 'done'}")
        return Completed(name="Cached" if result.cached else None, data=result.record)

    return stage_task().result()


def worth_retrying(_: Task[Any, Any], __: TaskRun, state: State[Any]) -> bool:
    """Only a process that was killed: a wrong setting or a loss that is not a number would only repeat itself."""
    try:
        state.result()
    except DiedError:
        return True
    except BaseException:  # noqa: BLE001 - any other end of the task is final
        return False
    return False


def say(line: str) -> None:
    """Print a line on the terminal and in the flow run's log."""
    print(line, flush=True)
    get_run_logger().info(line)


class StageTasks:
    """Runs the steps of a pipeline as tasks, while MLflow follows the training run.

    Leaving it by an error closes the MLflow run of a training that had ended; the same command reopens it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.records: dict[str, Any] = {}

    def __enter__(self) -> "StageTasks":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and "train" in self.records:
            from flows import training_run  # lazy: mlflow

            training_run.close_after_error(self.recipe, self.records["train"], error)

    def run(self, step: Step) -> Any:
        """Run one step and return its record."""
        if step.title == EVALUATE_BASE:
            with self.recorded():
                record = run_as_task(step.stage.name, step.run)
        elif step.stage.name == "train":
            record = run_as_task("train", lambda: step.run(self.followed(step)))
        else:
            record = run_as_task(step.stage.name, step.run)
        self.records[step.title] = record
        if isinstance(record, RenderedSet):
            say((record.path / TEXT).read_text())
        return record

    def followed(self, step: Step) -> AbstractContextManager[None]:
        """The context of training: an MLflow run that follows its journal."""
        from flows import training_run  # lazy: mlflow

        assert step.call is not None
        return training_run.followed(self.recipe, step.call)

    def recorded(self) -> AbstractContextManager[None]:
        """The context of the base's evaluation: what training left is logged to MLflow."""
        from flows import training_run  # lazy: mlflow

        pairs, rendered, checkpoint = (self.records[name] for name in ("acquire", "render", "train"))
        return training_run.recorded(self.recipe, pairs, rendered, checkpoint)


def register(recipe: Recipe, candidate: "Candidate") -> ModelVersion:
    """The whole run in MLflow, and its model as a version in the registry."""
    from flows import training_run  # lazy: mlflow

    return run_as_task("register", lambda: training_run.register(recipe, candidate))


def promote(recipe: Recipe, candidate: "Candidate", version: ModelVersion) -> Promotion:
    """The decision about the champion, in MLflow and as a Prefect artifact."""
    from flows import training_run  # lazy: mlflow

    def decide() -> StageResult[Promotion]:
        promotion = training_run.promote(recipe, candidate, version)
        say(promotion.reason)
        return StageResult(promotion, False)

    return run_as_task("promote", decide)
