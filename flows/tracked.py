"""The stages that MLflow hears of, one Prefect task each: training, registering, promoting."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from dpo_core import river
from dpo_core.errors import StoppedError, TrackingError
from dpo_core.produce import Produced
from dpo_core.recipe import Recipe
from dpo_core.records import Checkpoint, ModelSource, ModelVersion, Promotion, ReferenceSet, RenderedSet
from dpo_core.train.run_dir import origin_of
from flows import approval, champion, lineage, model_card, registry, run_page, tracking
from flows.follower import Follower
from flows.recording import Training, record, recording
from flows.registry import Candidate
from flows.stage import say, stage


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


@stage("register")
def register(recipe: Recipe, candidate: Candidate) -> Produced[ModelVersion]:
    """The whole run in MLflow, and its model as a version in the registry."""
    name, handle = registry.registered_name(recipe), opened(recipe, candidate.checkpoint)
    with tracking.answering(handle.uri):
        found = registry.find_version(handle.client, name, candidate)
    if found is not None:
        return Produced(registry.record(handle, found), True)
    tags = lineage.tags(recipe, candidate.pairs)
    tracking.tag(handle, tags)
    record(handle, recipe, Training(candidate.checkpoint, candidate.pairs, candidate.rendered))
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
def meanwhile(recipe: Recipe, training: Training) -> Iterator[None]:
    """What training left is recorded while the block runs."""
    with recording(partial(opened, recipe, training.checkpoint), recipe, training):
        yield


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
