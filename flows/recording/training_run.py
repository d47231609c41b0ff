"""MLflow run of a training run: it follows the journal, logs what training wrote, and registers and promotes the model.

Nothing in MLflow depends on this process: the run is found again by its fingerprint, so a killed flow can be repeated.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from prefect.artifacts import create_markdown_artifact

from dpo_core.config.recipe import Recipe
from dpo_core.errors import StoppedError, TrackingError
from dpo_core.pipeline.stage_calls import run_fingerprint
from dpo_core.records import Checkpoint, ModelVersion, Promotion
from dpo_core.stages.stage import StageCall, StageResult
from dpo_core.stages.train import TrainRequest
from dpo_core.train.checkpoint.run_dir import read_origin
from flows.recording import log_artifacts
from flows.recording.log_artifacts import TrainingOutput
from flows.registry import approval, champion, versions
from flows.registry.versions import Candidate, VersionNotes
from flows.reports import model_card, run_report
from flows.tracking import lineage, mlflow_run
from flows.tracking.journal_follower import Follower
from flows.tracking.mlflow_run import RunHandle


class TrainingRun:
    """The MLflow run of the recipe's training run, opened once and used by every later step of the flow."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.handle: RunHandle | None = None

    def open(self, checkpoint: Checkpoint) -> RunHandle:
        """Return the run that made a checkpoint; the first call finds or creates it.

        Raises TrackingError when MLflow does not answer.
        """
        if self.handle is None:
            log_path = checkpoint.log_path
            name = mlflow_run.run_name(self.recipe, log_path)
            self.handle = mlflow_run.open_run(self.recipe.track, self.recipe, name, read_origin(log_path))
        return self.handle

    @contextmanager
    def follow_journal(self, call: StageCall[Checkpoint]) -> Iterator[None]:
        """Log the journal to MLflow while the block trains, from the start or from when MLflow first answers.

        When the block succeeds the run stays open, and :meth:`promote` finishes it. When it fails the run is closed as
        KILLED or FAILED.
        """
        log_path = TrainRequest.model_validate(call.request).log_path
        name = mlflow_run.run_name(self.recipe, log_path)
        open_run = partial(mlflow_run.open_run, self.recipe.track, self.recipe, name, run_fingerprint(call))
        follower = Follower(open_run, log_path)
        try:
            with follower:
                yield
        except BaseException as error:
            if follower.handle:
                with suppress(TrackingError):
                    mlflow_run.close_run(follower.handle, closing_status(error))
            raise

    def log_in_background(self, output: TrainingOutput) -> AbstractContextManager[None]:
        """Log what training wrote, in the background while the block runs."""
        return log_artifacts.log_in_background(partial(self.open, output.checkpoint), self.recipe, output)

    def register(self, candidate: Candidate) -> StageResult[ModelVersion]:
        """Log the run completely and register its model; an existing version of the candidate is returned as cached.

        Raises TrackingError when MLflow does not answer.
        """
        handle = self.open(candidate.checkpoint)
        name = versions.registered_model_name(self.recipe)
        return versions.register(handle, candidate, name, lambda: self.log_candidate(handle, candidate))

    def log_candidate(self, handle: RunHandle, candidate: Candidate) -> VersionNotes:
        """Log lineage, training output and evaluation results; return the notes of a new version."""
        tags = lineage.lineage_tags(self.recipe, candidate.pairs)
        mlflow_run.set_tags(handle, tags)
        output = TrainingOutput(candidate.checkpoint, candidate.pairs, candidate.rendered)
        log_artifacts.log_training(handle, self.recipe, output)
        run_report.log_results(handle, candidate)
        return VersionNotes(tags, model_card.model_card_markdown(self.recipe, candidate))

    def promote(self, candidate: Candidate, version: ModelVersion) -> Promotion:
        """Decide about the champion, write the decision to MLflow and to a Prefect artifact, and finish the run.

        Raises TrackingError when MLflow does not answer.
        """
        handle, settings = self.open(candidate.checkpoint), self.recipe.promote
        measured = champion.measured_version(version, candidate.before, candidate.after)
        promotion = champion.promote(handle, measured, settings, approval.approval_request(settings))
        run_report.set_description(handle, self.recipe, candidate, promotion)
        mlflow_run.close_run(handle, "FINISHED")
        create_markdown_artifact(f"{promotion.reason}\n\nMLflow run: {handle.url or handle.run_id}", key="promotion")
        return promotion

    def close_after_error(self, checkpoint: Checkpoint, error: BaseException) -> None:
        """Close the run of a completed training when a later step of the flow failed."""
        with suppress(TrackingError):
            mlflow_run.close_run(self.open(checkpoint), closing_status(error))


def closing_status(error: BaseException) -> str:
    """Return MLflow's run status for an error: KILLED after a signal, otherwise FAILED."""
    return "KILLED" if isinstance(error, StoppedError) or not isinstance(error, Exception) else "FAILED"
