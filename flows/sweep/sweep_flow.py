"""Sweep flow: members in processes of their own under one parent run; the best is promoted through the gates."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Param
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from rich.console import Console

from dpo_core.cache import atomic_files
from dpo_core.config.recipe import PromoteSettings, Recipe
from dpo_core.errors import RecipeError, StoppedError, TrackingError, TrainingError
from dpo_core.pipeline.preflight import preflight
from dpo_core.records import Promotion, Record
from dpo_core.train.checkpoint.run_dir import read_config
from flows.pipeline import PipelineOutcome
from flows.registry import approval, champion
from flows.registry.versions import CANDIDATE
from flows.reports import compare_runs, comparison_page
from flows.reports.run_table import Experiment
from flows.sweep import sweep_report
from flows.sweep.member_processes import FAILED, INTERRUPTED, MemberResult, WorkerPool
from flows.sweep.sweep_plan import Member, SweepPlan, plan_sweep
from flows.tasks import print_and_log
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import RunHandle, as_tracking_error

PARENT, SWEEP = "mlflow.parentRunId", "dpo.sweep"
STOPPED = "dpo.stopped_early"
PICTURE = "sweep.png"


class SweepOutcome(Record):
    """Outcome of a sweep: its parent run, the best member's name, that member's promotion, and how many members failed
    or were interrupted."""

    run_id: str
    best: str
    promotion: Promotion
    unfinished: int


@flow(name="dpo-sweep", description=__doc__, timeout_seconds=None, persist_result=False)
def sweep(recipe: Recipe, axes: dict[str, list[str]]) -> SweepOutcome:
    """Run every combination of the axes' values, compare them, and promote the best through the recipe's gates."""
    planned = plan_sweep(recipe, axes)
    for member in planned.members:
        preflight(member.recipe)
    with lock_sweep(planned), parent_run(planned) as handle:
        nester = MemberNester(handle)
        pool = WorkerPool(
            planned.members, planned.directory, member_environment(handle), nester.nest_member, print_and_log
        )
        results = pool.run(recipe.sweep.members_at_once, recipe.sweep.stop_hopeless_after)
        best, outcome = choose_best(results)
        promotion = promote_best(handle, outcome, recipe.promote)
        log_summary(handle, planned, results, best)
        mlflow_run.set_tags(
            handle, {"mlflow.note.content": sweep_report.parent_description(planned, results, best, promotion.reason)}
        )
        Console(highlight=False).print(sweep_report.sweep_table(planned, results, best))
        print_and_log(promotion.reason)
        unfinished = sum(result.state in (FAILED, INTERRUPTED) for result in results)
        if unfinished:
            print_and_log(
                f"{unfinished} of {len(results)} members did not finish. To try them again, repeat the command."
            )
        return SweepOutcome(run_id=handle.run_id, best=best.member.name, promotion=promotion, unfinished=unfinished)


@contextmanager
def lock_sweep(planned: SweepPlan) -> Iterator[None]:
    """Lock the sweep's directory.

    Raises RecipeError when another process runs the sweep.
    """
    planned.directory.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.locked(planned.directory, wait=False):
            yield
    except BlockingIOError:
        raise RecipeError(
            "Another process runs this sweep.",
            "Only one process may run a sweep.",
            f"Wait until it ends. The members' logs are in {planned.directory}.",
        ) from None


@contextmanager
def parent_run(planned: SweepPlan) -> Iterator[RunHandle]:
    """The sweep's run, parent of the members' runs; closed as finished, failed or killed.

    Raises StoppedError on Ctrl-C.
    """
    handle = open_parent_run(planned)
    try:
        yield handle
    except KeyboardInterrupt:
        mlflow_run.close_run(handle, "KILLED")
        raise StoppedError(
            "The sweep was stopped.",
            "Finished members and checkpoints are kept.",
            "To continue it, repeat the command.",
        ) from None
    except BaseException as error:
        with suppress(TrackingError):
            mlflow_run.close_run(handle, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow_run.close_run(handle, "FINISHED")


def open_parent_run(planned: SweepPlan) -> RunHandle:
    """The sweep's run: an existing one with the sweep's fingerprint, or a new one."""
    track = planned.recipe.track
    uri = mlflow_server.tracking_uri(track)
    client = mlflow_run.connect(uri)
    with as_tracking_error(uri):
        experiment = mlflow_run.find_or_create_experiment(client, uri, track.experiment_name)
        run = mlflow_run.find_run(client, experiment, planned.fingerprint)
        if run is None:
            tags = mlflow_run.initial_tags(planned.fingerprint) | {
                "mlflow.source.name": "dpo sweep",
                SWEEP: planned.directory.name,
            }
            name = f"sweep of {len(planned.members)}: {' × '.join(planned.axes)}"
            run = client.create_run(experiment, run_name=name, tags=tags)
            axes = {leaf: ", ".join(values) for leaf, values in planned.axes.items()}
            parameters = mlflow_run.parameters(planned.recipe) | axes
            client.log_batch(run.info.run_id, params=[Param(leaf, value) for leaf, value in parameters.items()])
        else:
            client.update_run(run.info.run_id, status="RUNNING")
    return RunHandle(uri, experiment, run.info.run_id, client)


@dataclass(slots=True)
class MemberNester:
    """Makes members' runs children of the sweep's run as soon as they exist; a run that has a parent keeps it."""

    handle: RunHandle
    nested: set[str] = field(default_factory=set)

    def nest_member(self, member: Member) -> None:
        """Nest a member's run if it exists by now; does nothing while MLflow does not answer."""
        config = None if member.name in self.nested else read_config(member.log_path)
        if config is None:
            return
        with suppress(TrackingError), as_tracking_error(self.handle.uri):
            run = mlflow_run.find_run(self.handle.client, self.handle.experiment_id, config["origin"])
            if run is not None:
                self.nest_run(run.info.run_id)
                self.nested.add(member.name)

    def nest_run(self, run_id: str) -> None:
        """Set the tag by which MLflow's table nests runs."""
        if PARENT not in self.handle.client.get_run(run_id).data.tags and run_id != self.handle.run_id:
            self.handle.client.set_tag(run_id, PARENT, self.handle.run_id)


def member_environment(handle: RunHandle) -> dict[str, str]:
    """The members' environment: the MLflow store and the Prefect server of this flow, which may be a temporary one."""
    with get_client(sync_client=True) as client:
        return {**os.environ, "PREFECT_API_URL": str(client.api_url).rstrip("/"), "MLFLOW_TRACKING_URI": handle.uri}


def choose_best(results: Sequence[MemberResult]) -> tuple[MemberResult, PipelineOutcome]:
    """The best member: most prompts followed strictly, then highest held-out accuracy; the first of equals.

    Raises TrainingError when no member finished.
    """
    done = [(result, result.outcome) for result in results if result.outcome]
    if not done:
        reasons = "; ".join(f"{result.member.name}: {result.reason}" for result in results)
        raise TrainingError("No member of the sweep finished.", reasons, "To try them again, repeat the command.")
    return max(done, key=lambda pair: ranking(pair[1]))


def ranking(outcome: PipelineOutcome) -> tuple[float, float]:
    """The share of prompts followed strictly and the held-out accuracy, by which members are ranked."""
    metrics = outcome.trained.metrics
    return metrics.get("prompt_strict_acc", 0.0), metrics["test/accuracy"]


def promote_best(handle: RunHandle, outcome: PipelineOutcome, rule: PromoteSettings) -> Promotion:
    """Promote the best member's version through the gates; it gets the alias ``candidate`` even if another is newer."""
    version = outcome.version
    run = RunHandle(handle.uri, version.experiment_id, version.run_id, handle.client)
    with as_tracking_error(handle.uri):
        handle.client.set_registered_model_alias(version.name, CANDIDATE, str(version.version))
    return champion.promote(
        run, champion.measured_version(version, outcome.base, outcome.trained), rule, approval.approval_request(rule)
    )


def log_summary(handle: RunHandle, planned: SweepPlan, results: Sequence[MemberResult], best: MemberResult) -> None:
    """Log table, bar plot and comparison of the members to the sweep's run and as a Prefect artifact."""
    report = sweep_report.to_markdown(planned, results, best)
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        nest_members(handle, results)
        sweep_report.draw_bars(results, Path(temporary) / PICTURE)
        (Path(temporary) / "sweep.md").write_text(report)
        handle.client.log_artifacts(handle.run_id, temporary)
        time = handle.client.get_run(handle.run_id).info.start_time + 1
        values = {f"{mlflow_run.AFTER}/{name}": sweep_report.final_metric(best, name) for name in sweep_report.METRICS}
        metrics = [Metric(name, value, time, 0) for name, value in values.items() if value is not None]
        handle.client.log_batch(handle.run_id, metrics=metrics)
        report += log_comparison(handle, planned, results)
    create_markdown_artifact(report, key="sweep")


def nest_members(handle: RunHandle, results: Sequence[MemberResult]) -> None:
    """Nest the runs of members that were trained before the sweep; tag an unfinished run with the reason."""
    nester = MemberNester(handle)
    for result in results:
        if result.outcome:
            nester.nest_run(result.outcome.version.run_id)
        elif (config := read_config(result.member.log_path)) is not None:
            run = mlflow_run.find_run(handle.client, handle.experiment_id, config["origin"])
            if run is not None and result.reason:
                handle.client.set_tag(run.info.run_id, STOPPED, result.reason)


def log_comparison(handle: RunHandle, planned: SweepPlan, results: Sequence[MemberResult]) -> str:
    """Log the comparison of the finished members with the first one, as ``dpo compare`` does; returns it in Markdown.

    Empty when fewer than two members finished.
    """
    ids = list(dict.fromkeys(result.outcome.version.run_id for result in results if result.outcome))
    if len(ids) < 2:
        return ""
    experiment = Experiment(handle.uri, handle.client, handle.experiment_id, planned.recipe.track.experiment_name)
    comparison = compare_runs.compare(experiment, [handle.client.get_run(run_id) for run_id in ids])
    directory = planned.directory / "comparison"
    compare_runs.write_files(comparison, directory)
    compare_runs.log_files(experiment, comparison, directory, handle.run_id)
    return "\n" + comparison_page.to_markdown(comparison)
