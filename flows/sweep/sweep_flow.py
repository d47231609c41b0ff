"""A sweep: members in processes of their own under one parent run, the best promoted through the gates."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Param
from prefect import flow, get_run_logger
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
from flows.sweep.member_processes import FAILED, INTERRUPTED, Result, WorkerPool
from flows.sweep.sweep_plan import Member, SweepPlan, plan
from flows.tracking import mlflow_run, mlflow_server
from flows.tracking.mlflow_run import RunHandle, as_tracking_error

PARENT, SWEEP = "mlflow.parentRunId", "dpo.sweep"
STOPPED = "dpo.stopped_early"
PICTURE = "sweep.png"


class SweepOutcome(Record):
    """What a sweep came to: its parent run, the best member's name, what became of its version, and how many members
    failed or were interrupted."""

    run_id: str
    best: str
    promotion: Promotion
    undone: int


@flow(name="dpo-sweep", description=__doc__, timeout_seconds=None, persist_result=False)
def sweep(recipe: Recipe, axes: dict[str, list[str]]) -> SweepOutcome:
    """Run every combination of the axes' values, compare them, and promote the best through the recipe's gates."""
    planned = plan(recipe, axes)
    for member in planned.members:
        preflight(member.recipe)
    with alone(planned), parent(planned) as handle:
        crew = WorkerPool(planned.members, planned.place, environment(handle), MemberNester(handle).watch, say)
        results = crew.run(recipe.sweep.members_at_once, recipe.sweep.stop_hopeless_after)
        best, outcome = choose(results)
        promotion = promoted(handle, outcome, recipe.promote)
        summarise(handle, planned, results, best)
        mlflow_run.set_tags(
            handle, {"mlflow.note.content": sweep_report.description(planned, results, best, promotion.reason)}
        )
        Console(highlight=False).print(sweep_report.table(planned, results, best))
        say(promotion.reason)
        undone = sum(one.state in (FAILED, INTERRUPTED) for one in results)
        if undone:
            say(f"{undone} of {len(results)} members did not finish; the same command tries them again.")
        return SweepOutcome(run_id=handle.run_id, best=best.member.name, promotion=promotion, undone=undone)


@contextmanager
def alone(planned: SweepPlan) -> Iterator[None]:
    """Hold the sweep.

    Raises RecipeError when another process runs it.
    """
    planned.place.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.locked(planned.place, wait=False):
            yield
    except BlockingIOError:
        raise RecipeError(
            "Another process runs this sweep.", "One at a time does.", f"Its members' logs are in {planned.place}."
        ) from None


@contextmanager
def parent(planned: SweepPlan) -> Iterator[RunHandle]:
    """The sweep's run, whose children its members' are; closed as what the block came to."""
    handle = open_parent(planned)
    try:
        yield handle
    except KeyboardInterrupt:
        mlflow_run.close_run(handle, "KILLED")
        raise StoppedError(
            "The sweep was stopped.", "Finished members and checkpoints are kept.", "The same command continues it."
        ) from None
    except BaseException as error:
        with suppress(TrackingError):
            mlflow_run.close_run(handle, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow_run.close_run(handle, "FINISHED")


def open_parent(planned: SweepPlan) -> RunHandle:
    """The sweep's run: found again by what the sweep is, or made."""
    track = planned.recipe.track
    uri = mlflow_server.tracking_uri(track)
    client = mlflow_run.connect(uri)
    with as_tracking_error(uri):
        experiment = mlflow_run.find_or_create_experiment(client, uri, track.experiment_name)
        run = mlflow_run.find_run(client, experiment, planned.fingerprint)
        if run is None:
            tags = mlflow_run.initial_tags(planned.fingerprint) | {
                "mlflow.source.name": "dpo sweep",
                SWEEP: planned.place.name,
            }
            name = f"sweep of {len(planned.members)}: {' × '.join(planned.axes)}"
            run = client.create_run(experiment, run_name=name, tags=tags)
            told = mlflow_run.parameters(planned.recipe) | {leaf: ", ".join(of) for leaf, of in planned.axes.items()}
            client.log_batch(run.info.run_id, params=[Param(leaf, value) for leaf, value in told.items()])
        else:
            client.update_run(run.info.run_id, status="RUNNING")
    return RunHandle(uri, experiment, run.info.run_id, client)


@dataclass(slots=True)
class MemberNester:
    """Makes members' runs children of the sweep's as soon as they are there; one that has a parent keeps it."""

    handle: RunHandle
    known: set[str] = field(default_factory=set)

    def watch(self, member: Member) -> None:
        """See whether a member's run is there by now; MLflow may be away meanwhile."""
        told = None if member.name in self.known else read_config(member.log_path)
        if told is None:
            return
        with suppress(TrackingError), as_tracking_error(self.handle.uri):
            run = mlflow_run.find_run(self.handle.client, self.handle.experiment_id, told["origin"])
            if run is not None:
                self.adopt(run.info.run_id)
                self.known.add(member.name)

    def adopt(self, run_id: str) -> None:
        """Set the tag by which MLflow's table nests runs."""
        if PARENT not in self.handle.client.get_run(run_id).data.tags and run_id != self.handle.run_id:
            self.handle.client.set_tag(run_id, PARENT, self.handle.run_id)


def environment(handle: RunHandle) -> dict[str, str]:
    """What members see: this store, and the Prefect server of this flow, which may be its own."""
    with get_client(sync_client=True) as client:
        return {**os.environ, "PREFECT_API_URL": str(client.api_url).rstrip("/"), "MLFLOW_TRACKING_URI": handle.uri}


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, flush=True)
    get_run_logger().info(line)


def choose(results: Sequence[Result]) -> tuple[Result, PipelineOutcome]:
    """The best member: the most prompts followed strictly, then the highest held-out accuracy; the first of equals.

    Raises TrainingError when none was finished.
    """
    done = [(one, one.outcome) for one in results if one.outcome]
    if not done:
        told = "; ".join(f"{one.member.name}: {one.told}" for one in results)
        raise TrainingError("No member of the sweep was finished.", told, "The same command tries them again.")
    return max(done, key=lambda pair: score(pair[1]))


def score(outcome: PipelineOutcome) -> tuple[float, float]:
    """What members are ranked by."""
    told = outcome.trained.metrics
    return told.get("prompt_strict_acc", 0.0), told["test/accuracy"]


def promoted(handle: RunHandle, outcome: PipelineOutcome, rule: PromoteSettings) -> Promotion:
    """The best member's version through the gates; it holds the alias ``candidate`` whichever came last."""
    version = outcome.version
    run = RunHandle(handle.uri, version.experiment_id, version.run_id, handle.client)
    with as_tracking_error(handle.uri):
        handle.client.set_registered_model_alias(version.name, CANDIDATE, str(version.version))
    return champion.promote(
        run, champion.measured_version(version, outcome.base, outcome.trained), rule, approval.approval_request(rule)
    )


def summarise(handle: RunHandle, planned: SweepPlan, results: Sequence[Result], best: Result) -> None:
    """Table, bars and the comparison of the members, with the sweep's run and as Prefect artifacts."""
    told = sweep_report.markdown(planned, results, best)
    with as_tracking_error(handle.uri), tempfile.TemporaryDirectory() as temporary:
        nest(handle, results)
        sweep_report.bars(results, Path(temporary) / PICTURE)
        (Path(temporary) / "sweep.md").write_text(told)
        handle.client.log_artifacts(handle.run_id, temporary)
        time = handle.client.get_run(handle.run_id).info.start_time + 1
        numbers = {f"{mlflow_run.AFTER}/{name}": sweep_report.metric(best, name) for name in sweep_report.METRICS}
        metrics = [Metric(name, value, time, 0) for name, value in numbers.items() if value is not None]
        handle.client.log_batch(handle.run_id, metrics=metrics)
        told += comparison(handle, planned, results)
    create_markdown_artifact(told, key="sweep")


def nest(handle: RunHandle, results: Sequence[Result]) -> None:
    """Adopt members whose training was there before the sweep, and note on a run why it was stopped."""
    adopter = MemberNester(handle)
    for one in results:
        if one.outcome:
            adopter.adopt(one.outcome.version.run_id)
        elif (told := read_config(one.member.log_path)) is not None:
            run = mlflow_run.find_run(handle.client, handle.experiment_id, told["origin"])
            if run is not None and one.told:
                handle.client.set_tag(run.info.run_id, STOPPED, one.told)


def comparison(handle: RunHandle, planned: SweepPlan, results: Sequence[Result]) -> str:
    """The finished members against the first of them, as ``dpo compare`` does; nothing for a single one."""
    ids = list(dict.fromkeys(one.outcome.version.run_id for one in results if one.outcome))
    if len(ids) < 2:
        return ""
    experiment = Experiment(handle.uri, handle.client, handle.experiment_id, planned.recipe.track.experiment_name)
    made = compare_runs.compare(experiment, [handle.client.get_run(run_id) for run_id in ids])
    place = planned.place / "comparison"
    compare_runs.write(made, place)
    compare_runs.log(experiment, made, place, handle.run_id)
    return "\n" + comparison_page.markdown(made)
