"""Around the members of a sweep: its run, whose children they are, which is best, and what is said of it."""

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
from flows.sweep.member_processes import Result, Running, WorkerPool
from flows.sweep.sweep_plan import SweepPlan, plan, read
from flows.tracking import mlflow_run
from tests.flows.fake import evaluation

AXES = {"learning_rate": ("1e-6", "5e-6"), "dpo_beta": ("0.05", "0.1")}


@pytest.fixture
def planned(recipe: Recipe, tmp_path: Path) -> SweepPlan:
    track = recipe.track.model_copy(update={"runs_dir": tmp_path / "runs"})
    return plan(recipe.model_copy(update={"track": track}), AXES)


def outcome(candidate: Candidate, trained: EvalResult, version: int = 1) -> PipelineOutcome:
    made = ModelVersion(
        name="m", version=version, run_id="r", experiment_id="1", tracking_uri="", model_uri=f"models:/m/{version}"
    )
    kept = Promotion(promoted=False, reason="", name="m", version=version, champion_version=None)
    return PipelineOutcome(
        checkpoint=candidate.checkpoint, base=candidate.before, trained=trained, version=made, promotion=kept
    )


@pytest.fixture
def results(planned: SweepPlan, candidate: Candidate, tmp_path: Path) -> list[Result]:
    """Fewer prompts but a higher accuracy; more prompts; as many and a higher accuracy; one that failed."""
    told = [(80, 0.99), (90, 0.8), (90, 0.85)]
    done = [
        outcome(
            candidate, evaluation(tmp_path / f"e{index}", [True] * share + [False] * (100 - share), accuracy), index
        )
        for index, (share, accuracy) in enumerate(told, 1)
    ]
    made = [Result(member, "done", outcome=one) for member, one in zip(planned.members, done, strict=False)]
    return [*made, Result(planned.members[3], "failed", "the loss is not a number.")]


def test_the_best_follows_most_prompts_then_prefers_best(results: list[Result]) -> None:
    assert sweep_flow.choose(results)[0] is results[2]
    assert sweep_flow.choose([results[1], replace(results[1])])[0] is results[1]


def test_no_member_finished_is_an_error_that_says_why(results: list[Result]) -> None:
    with pytest.raises(TrainingError, match=r"learning_rate=5e-6_dpo_beta=0\.1: the loss is not a number"):
        sweep_flow.choose(results[3:])


def test_the_sweeps_run_is_found_again(planned: SweepPlan) -> None:
    with sweep_flow.parent(planned) as first:
        pass
    run = first.client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "sweep of 4: learning_rate × dpo_beta")
    assert (run.data.params["learning_rate"], run.data.params["batch_size"]) == ("1e-6, 5e-6", "32")
    with pytest.raises(ZeroDivisionError), sweep_flow.parent(planned) as second:
        raise ZeroDivisionError
    assert second.run_id == first.run_id
    assert first.client.get_run(first.run_id).info.status == "FAILED"


def test_a_members_run_becomes_a_child_and_keeps_its_first_parent(
    planned: SweepPlan, run: mlflow_run.RunHandle
) -> None:
    member = planned.members[0]
    adopter = sweep_flow.MemberNester(replace(run, run_id="sweep"))
    adopter.watch(member)
    assert not adopter.known
    member.log_path.mkdir(parents=True)
    write_config(member.log_path, {"fingerprint": "f00d", "origin": "f00d", "lineage": "l", "recipe": {}})
    adopter.watch(member)
    sweep_flow.MemberNester(replace(run, run_id="another")).watch(member)
    assert run.client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == "sweep"


def test_one_process_at_a_time_runs_a_sweep(planned: SweepPlan) -> None:
    again = sweep_flow.alone(planned)
    with sweep_flow.alone(planned), pytest.raises(RecipeError, match="Another process runs this sweep"), again:
        pass
    with sweep_flow.alone(planned):
        pass


def test_the_command_repeats_the_sweep(planned: SweepPlan) -> None:
    words = shlex.split(sweep_report.command(planned))
    assert words[:2] == ["dpo", "sweep"]
    recipe, axes = read(None, words[2:])
    assert axes == AXES
    assert plan(recipe, axes).fingerprint == planned.fingerprint


def test_what_is_said_and_drawn(planned: SweepPlan, results: list[Result], tmp_path: Path) -> None:
    told = sweep_report.description(planned, results, results[2], "version 3 is promoted.")
    assert told.startswith("- **learning_rate=5e-6_dpo_beta=0.05** (best): IFEval 0.900, held-out accuracy 0.850\n")
    assert "- learning_rate=5e-6_dpo_beta=0.1: failed: the loss is not a number." in told
    assert "\n\nVersion 3 is promoted.\n" in told
    grid = sweep_report.markdown(planned, results, results[2])
    assert "| 5e-6 | 0.05 | done | 0.900 | 0.850 | 3 | **best** |" in grid
    assert "| 5e-6 | 0.1 | failed: the loss is not a number. |  |  |  |  |" in grid
    sweep_report.bars(results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "why", "state", "told"),
    [
        (4, None, "failed", "the last word. Do this."),
        (75, None, "stopped", "the last word. Do this."),
        (75, "hopeless", "stopped early", "hopeless"),
        (-9, "hopeless", "failed", "the last word. Do this."),
        (0, None, "failed", "the last word. Do this."),
    ],
)
def test_what_became_of_a_member(planned: SweepPlan, code: int, why: str | None, state: str, told: str) -> None:
    crew = WorkerPool(planned.members, planned.place, {}, lambda _: None, print)
    planned.place.mkdir(parents=True)
    member = planned.members[0]
    crew.file(member, "log").write_text("step 3\nerror: the last word. Do this.\nbye\n")
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    made = crew.result(Running(member, ended, why), code)
    assert (made.state, made.told) == (state, told)
    assert crew.known(member) == (state == "stopped early")
