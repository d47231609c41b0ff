"""One Prefect task a stage: thin wrappers, so that every stage shows in the UI with its state, retries and time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from dpo_core import river
from dpo_core.data.report import TEXT
from dpo_core.errors import DiedError, StoppedError, TrackingError
from dpo_core.produce import Produced
from dpo_core.recipe import Recipe
from dpo_core.records import (
    Checkpoint,
    EvalResult,
    ModelSource,
    ModelVersion,
    PairSet,
    Promotion,
    PromptSet,
    Record,
    ReferenceSet,
    RenderedSet,
)
from dpo_core.train.run_dir import origin_of
from flows import approval, champion, lineage, model_card, registry, run_page, tracking
from flows.follower import Follower
from flows.registry import Candidate

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


@stage("acquire")
def acquire(recipe: Recipe) -> Produced[PairSet]:
    """The preferences, checked and split."""
    return river.acquire(recipe)


@stage("prompts")
def acquire_prompts(recipe: Recipe) -> Produced[PromptSet | None]:
    """The instruction-following prompts."""
    produced: Produced[PromptSet | None] | None = river.acquire_prompts(recipe)
    return produced or Produced(None, True)


@stage("render")
def render(recipe: Recipe, pairs: PairSet, model: ModelSource) -> Produced[RenderedSet]:
    """Token ids of every pair."""
    produced = river.render(recipe, pairs, model)
    say((produced.record.path / TEXT).read_text())
    return produced


@stage("warm_start")
def warm_start(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ModelSource]:
    """The model after a light supervised phase."""
    return river.warm_start(recipe, rendered, model)


@stage("score_reference")
def score_reference(recipe: Recipe, rendered: RenderedSet, model: ModelSource) -> Produced[ReferenceSet]:
    """The reference's log-probabilities."""
    return river.score_reference(recipe, rendered, model)


@stage("train")
def train(recipe: Recipe, rendered: RenderedSet, reference: ReferenceSet, model: ModelSource) -> Produced[Checkpoint]:
    """The policy, optimised, while MLflow follows its journal."""
    return river.train(recipe, rendered, reference, model, partial(followed, recipe))


@contextmanager
def followed(recipe: Recipe, fingerprint: str, log_path: Path) -> Iterator[None]:
    """A run in MLflow that follows the journal, from the start or from when MLflow first answers.

    The run is left open at a good end, for registering to finish, and closed as KILLED or FAILED otherwise.
    """
    follower = Follower(
        partial(tracking.open_run, recipe.track, recipe, label(recipe, log_path), fingerprint), log_path
    )
    try:
        with follower:
            yield
    except BaseException as error:
        if follower.handle:
            with suppress(TrackingError):
                tracking.close_run(follower.handle, ending(error))
        raise


@stage("evaluate")
def evaluate(recipe: Recipe, model: ModelSource, inputs: river.EvaluationInputs) -> Produced[EvalResult]:
    """One model on held-out pairs and prompts."""
    return river.evaluate(recipe, model, inputs)


@stage("register")
def register(recipe: Recipe, candidate: Candidate) -> Produced[ModelVersion]:
    """The whole run in MLflow, and its model as a version in the registry."""
    name, handle = registry.registered_name(recipe), opened(recipe, candidate.checkpoint)
    with tracking.answering(handle.uri):
        found = registry.find_version(handle.client, name, candidate)
    if found is not None:
        return Produced(registry.record(handle, found), True)
    tags = lineage.tags(recipe, candidate.pairs)
    tracking.project(handle, candidate.checkpoint.log_path)
    tracking.tag(handle, tags)
    run_page.log_data(handle, candidate.pairs, candidate.rendered)
    run_page.log_files(handle, recipe, candidate.checkpoint.log_path)
    run_page.log_results(handle, candidate)
    return registry.register(handle, candidate, name, registry.About(tags, model_card.card(recipe, candidate)))


@stage("promote")
def promote(recipe: Recipe, candidate: Candidate, version: ModelVersion) -> Produced[Promotion]:
    """The decision about the champion, written down in MLflow and as a Prefect artifact."""
    handle = opened(recipe, candidate.checkpoint)
    case = champion.case(version, candidate.before, candidate.after)
    promotion = champion.promote(handle, case, recipe.promote, approval.asker(recipe.promote))
    run_page.describe(handle, recipe, candidate, promotion)
    tracking.close_run(handle, "FINISHED")
    say(promotion.reason)
    create_markdown_artifact(f"{promotion.reason}\n\nMLflow run: {handle.url or handle.run_id}", key="promotion")
    return Produced(promotion, False)


def opened(recipe: Recipe, checkpoint: Checkpoint) -> tracking.RunHandle:
    """The MLflow run of the training run that a checkpoint is of."""
    log_path = checkpoint.log_path
    return tracking.open_run(recipe.track, recipe, label(recipe, log_path), origin_of(log_path))


@contextmanager
def accounted(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[None]:
    """What comes after training: when it fails, the MLflow run does not stay open. The same command reopens it."""
    try:
        yield
    except BaseException as error:
        with suppress(TrackingError):
            tracking.close_run(opened(recipe, checkpoint), ending(error))
        raise


def ending(error: BaseException) -> str:
    """How MLflow calls an end by this: asked for by a signal, or a failure."""
    return "KILLED" if isinstance(error, StoppedError) or not isinstance(error, Exception) else "FAILED"


def label(recipe: Recipe, log_path: Path) -> str:
    """A run's name in MLflow, whose UI cuts names off: what distinguishes runs comes first.

    A sweep's member, whose directory is named by what varies (:func:`flows.sweep.name_of`), is named so too.
    """
    if "=" in log_path.name:
        return log_path.name.replace("learning_rate=", "lr").replace("dpo_beta=", "beta")
    return f"lr{recipe.train.learning_rate:g} beta{recipe.train.dpo_beta:g} {log_path.name}"
