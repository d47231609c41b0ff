"""What every stage is as a Prefect task: shown in the UI with its state, retries and time."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from dpo_core.errors import DiedError
from dpo_core.produce import Produced
from dpo_core.records import Record

P = ParamSpec("P")
R = TypeVar("R", bound=Record | None)

RETRY_DELAYS_S = [5.0, 60.0]


def stage(name: str) -> Callable[[Callable[P, Produced[R]]], Callable[P, R]]:
    """A function that produces a record, as a Prefect task; an output that was there ends it in the state Cached.

    Prefect's own task cache is off: it would not notice that an output is gone, and the store does.
    """

    def decorate(function: Callable[P, Produced[R]]) -> Callable[P, R]:
        @wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> State[R]:
            produced = function(*args, **kwargs)
            say(f"{name}: {'cached' if produced.cached else 'done'}")
            return Completed(name="Cached" if produced.cached else None, data=produced.record)

        prefect_task = task(
            name=name,
            cache_policy=NO_CACHE,
            retries=len(RETRY_DELAYS_S),
            retry_delay_seconds=RETRY_DELAYS_S,
            retry_condition_fn=worth_retrying,
        )(body)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return prefect_task(*args, **kwargs).result()

        return call

    return decorate


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
    """A line for whoever watches: on the terminal, and in the flow run's log."""
    print(line, flush=True)
    get_run_logger().info(line)
