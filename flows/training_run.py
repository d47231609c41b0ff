"""Training run in MLflow: it follows the journal, records what training left, registers the model and decides."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from prefect.artifacts import create_markdown_artifact

from dpo_core.config.recipe import Recipe
from dpo_core.errors import StoppedError, TrackingError
from dpo_core.pipeline.stage_calls import run_fingerprint
from dpo_core.records import Checkpoint, ModelVersion, PairSet, Promotion, RenderedSet
from dpo_core.stages.stage import StageCall, StageResult
from dpo_core.stages.train import TrainRequest
from dpo_core.train.checkpoint.run_dir import read_origin
from flows import log_artifacts
from flows.log_artifacts import Training
from flows.registry import approval, champion, versions
from flows.registry.versions import Candidate
from flows.reports import model_card, run_report
from flows.tracking import lineage, mlflow_run
from flows.tracking.journal_follower import Follower


@contextmanager
def followed(recipe: Recipe, call: StageCall[Checkpoint]) -> Iterator[None]:
    """A run in MLflow that follows the journal, from the start or from when MLflow first answers.

    The run is left open at a good end, for registering to finish, and closed as KILLED or FAILED otherwise.
    """
    log_path = TrainRequest.model_validate(call.request).log_path
    name = mlflow_run.run_name(recipe, log_path)
    follower = Follower(partial(mlflow_run.open_run, recipe.track, recipe, name, run_fingerprint(call)), log_path)
    try:
        with follower:
            yield
    except BaseException as error:
        if follower.handle:
            with suppress(TrackingError):
                mlflow_run.close_run(follower.handle, status_after(error))
        raise


def open_run(recipe: Recipe, checkpoint: Checkpoint) -> mlflow_run.RunHandle:
    """The MLflow run of the training run that made a checkpoint."""
    log_path = checkpoint.log_path
    return mlflow_run.open_run(recipe.track, recipe, mlflow_run.run_name(recipe, log_path), read_origin(log_path))


def recorded(
    recipe: Recipe, pairs: PairSet, rendered: RenderedSet, checkpoint: Checkpoint
) -> AbstractContextManager[None]:
    """What training left is logged in the background while the block runs."""
    training = Training(checkpoint, pairs, rendered)
    return log_artifacts.recording(partial(open_run, recipe, checkpoint), recipe, training)


def register(recipe: Recipe, candidate: Candidate) -> StageResult[ModelVersion]:
    """The whole run in MLflow, and its model as a version in the registry."""
    name, handle = versions.registered_name(recipe), open_run(recipe, candidate.checkpoint)
    with mlflow_run.answering(handle.uri):
        found = versions.find_version(handle.client, name, candidate)
    if found is not None:
        return StageResult(versions.record(handle, found), True)
    tags = lineage.tags(recipe, candidate.pairs)
    mlflow_run.tag(handle, tags)
    log_artifacts.record(handle, recipe, Training(candidate.checkpoint, candidate.pairs, candidate.rendered))
    run_report.log_results(handle, candidate)
    return versions.register(handle, candidate, name, versions.VersionNotes(tags, model_card.card(recipe, candidate)))


def promote(recipe: Recipe, candidate: Candidate, version: ModelVersion) -> Promotion:
    """The decision about the champion, written to MLflow and as a Prefect artifact; the run is finished."""
    handle = open_run(recipe, candidate.checkpoint)
    case = champion.case(version, candidate.before, candidate.after)
    promotion = champion.promote(handle, case, recipe.promote, approval.asker(recipe.promote))
    run_report.describe(handle, recipe, candidate, promotion)
    mlflow_run.close_run(handle, "FINISHED")
    create_markdown_artifact(f"{promotion.reason}\n\nMLflow run: {handle.url or handle.run_id}", key="promotion")
    return promotion


def close_after_error(recipe: Recipe, checkpoint: Checkpoint, error: BaseException) -> None:
    """Close the run of a training that ended, when what comes after it failed."""
    with suppress(TrackingError):
        mlflow_run.close_run(open_run(recipe, checkpoint), status_after(error))


def status_after(error: BaseException) -> str:
    """MLflow's status of a run that ended by this error: a signal asked for it, or a failure."""
    return "KILLED" if isinstance(error, StoppedError) or not isinstance(error, Exception) else "FAILED"
