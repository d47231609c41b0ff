"""Sweep flow: the parent run and its children, the choice of the best member, results and report."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError, TrainingError
from dpo_core.records import EvalResult, ModelVersion, Promotion
from dpo_core.train.checkpoint.run_dir import write_config
from flows.pipeline import PipelineOutcome
from flows.registry.versions import Candidate
from flows.sweep import sweep_flow, sweep_report
from flows.sweep.member_processes import MemberResult, RunningMember, WorkerPool
from flows.sweep.sweep_plan import SweepPlan, plan_sweep, read_sweep
from flows.tracking import mlflow_run
from tests.flows.fake import evaluation

AXES = {"learning_rate": ("1e-6", "5e-6"), "dpo_beta": ("0.05", "0.1")}


@pytest.fixture
def planned(recipe: Recipe, tmp_path: Path) -> SweepPlan:
    track = recipe.track.model_copy(update={"runs_dir": tmp_path / "runs"})
    return plan_sweep(recipe.model_copy(update={"track": track}), AXES)


def outcome(candidate: Candidate, trained: EvalResult, version: int = 1) -> PipelineOutcome:
    model_version = ModelVersion(
        name="m", version=version, run_id="r", experiment_id="1", tracking_uri="", model_uri=f"models:/m/{version}"
    )
    promotion = Promotion(promoted=False, reason="", name="m", version=version, champion_version=None)
    return PipelineOutcome(
        checkpoint=candidate.checkpoint,
        base=candidate.before,
        trained=trained,
        version=model_version,
        promotion=promotion,
    )


@pytest.fixture
def results(planned: SweepPlan, candidate: Candidate, tmp_path: Path) -> list[MemberResult]:
    """Member 1 follows fewer prompts; 2 and 3 follow more, 3 with the higher accuracy; 4 failed."""
    measured = [(80, 0.99), (90, 0.8), (90, 0.85)]
    done = [
        outcome(
            candidate, evaluation(tmp_path / f"e{index}", [True] * share + [False] * (100 - share), accuracy), index
        )
        for index, (share, accuracy) in enumerate(measured, 1)
    ]
    finished = [
        MemberResult(member, "done", outcome=result) for member, result in zip(planned.members, done, strict=False)
    ]
    return [*finished, MemberResult(planned.members[3], "failed", "the loss is not a number.")]


def test_the_best_follows_most_prompts_then_prefers_best(results: list[MemberResult]) -> None:
    assert sweep_flow.choose_best(results)[0] is results[2]
    assert sweep_flow.choose_best([results[1], replace(results[1])])[0] is results[1]


def test_no_finished_member_is_an_error_with_the_reasons(results: list[MemberResult]) -> None:
    with pytest.raises(TrainingError, match=r"learning_rate=5e-6_dpo_beta=0\.1: the loss is not a number"):
        sweep_flow.choose_best(results[3:])


def test_the_sweeps_run_is_found_again(planned: SweepPlan) -> None:
    with sweep_flow.parent_run(planned) as first:
        pass
    run = first.client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "sweep of 4: learning_rate × dpo_beta")
    assert (run.data.params["learning_rate"], run.data.params["batch_size"]) == ("1e-6, 5e-6", "32")
    with pytest.raises(ZeroDivisionError), sweep_flow.parent_run(planned) as second:
        raise ZeroDivisionError
    assert second.run_id == first.run_id
    assert first.client.get_run(first.run_id).info.status == "FAILED"


def test_a_members_run_becomes_a_child_and_keeps_its_first_parent(
    planned: SweepPlan, run: mlflow_run.RunHandle
) -> None:
    member = planned.members[0]
    nester = sweep_flow.MemberNester(replace(run, run_id="sweep"))
    nester.nest_member(member)
    assert not nester.nested
    member.log_path.mkdir(parents=True)
    write_config(member.log_path, {"fingerprint": "f00d", "origin": "f00d", "lineage": "l", "recipe": {}})
    nester.nest_member(member)
    sweep_flow.MemberNester(replace(run, run_id="another")).nest_member(member)
    assert run.client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == "sweep"


def test_one_process_at_a_time_runs_a_sweep(planned: SweepPlan) -> None:
    again = sweep_flow.lock_sweep(planned)
    with sweep_flow.lock_sweep(planned), pytest.raises(RecipeError, match="Another process runs this sweep"), again:
        pass
    with sweep_flow.lock_sweep(planned):
        pass


def test_the_command_repeats_the_sweep(planned: SweepPlan) -> None:
    words = shlex.split(sweep_report.sweep_command(planned))
    assert words[:2] == ["dpo", "sweep"]
    recipe, axes = read_sweep(None, words[2:])
    assert axes == AXES
    assert plan_sweep(recipe, axes).fingerprint == planned.fingerprint


def test_description_table_and_plot(planned: SweepPlan, results: list[MemberResult], tmp_path: Path) -> None:
    description = sweep_report.parent_description(planned, results, results[2], "version 3 is promoted.")
    assert description.startswith(
        "- **learning_rate=5e-6_dpo_beta=0.05** (best): IFEval 0.900, held-out accuracy 0.850\n"
    )
    assert "- learning_rate=5e-6_dpo_beta=0.1: failed: the loss is not a number." in description
    assert "\n\nVersion 3 is promoted.\n" in description
    grid = sweep_report.to_markdown(planned, results, results[2])
    assert "| 5e-6 | 0.05 | done | 0.900 | 0.850 | 3 | **best** |" in grid
    assert "| 5e-6 | 0.1 | failed: the loss is not a number. |  |  |  |  |" in grid
    sweep_report.draw_bars(results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "stop_reason", "state", "reason"),
    [
        (4, None, "failed", "the last word. Do this."),
        (75, None, "stopped", "the last word. Do this."),
        (75, "below the median", "stopped early", "below the median"),
        (-9, "below the median", "failed", "the last word. Do this."),
        (0, None, "failed", "the last word. Do this."),
    ],
)
def test_result_of_a_member(planned: SweepPlan, code: int, stop_reason: str | None, state: str, reason: str) -> None:
    pool = WorkerPool(planned.members, planned.directory, {}, lambda _: None, print)
    planned.directory.mkdir(parents=True)
    member = planned.members[0]
    pool.file(member, "log").write_text("step 3\nerror: the last word. Do this.\nbye\n")
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    result = pool.result(RunningMember(member, ended, stop_reason), code)
    assert (result.state, result.reason) == (state, reason)
    assert pool.was_stopped_early(member) == (state == "stopped early")
