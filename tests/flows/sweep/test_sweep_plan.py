"""Plan of a sweep, the early-stop rule, and complete sweeps run by the command line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from dpo_core.config.settings import read_recipe
from dpo_core.errors import RecipeError, TrainingError
from dpo_core.records import StepMetrics
from flows.sweep.early_stop import early_stop_reason
from flows.sweep.sweep_plan import SweepPlan, computed_settings, plan_sweep, read_sweep
from tests.conftest import pair_rows, shared

GRID = ("model_name=m", "learning_rate=1e-6,5e-6", "dpo_beta=0.05,0.1", "seed=3")


def planned(*words: str) -> SweepPlan:
    return plan_sweep(*read_sweep(None, words))


def test_every_combination_is_a_member() -> None:
    sweep = planned(*GRID)
    values = [
        (member.recipe.train.learning_rate, member.recipe.train.dpo_beta, member.recipe.train.seed)
        for member in sweep.members
    ]
    assert values == [(1e-6, 0.05, 3), (1e-6, 0.1, 3), (5e-6, 0.05, 3), (5e-6, 0.1, 3)]
    assert sweep.members[1].name == "learning_rate=1e-6_dpo_beta=0.1"
    assert len({member.log_path for member in sweep.members}) == 4


def test_a_member_computes_the_same_as_a_run_with_its_values() -> None:
    member = planned(*GRID).members[2]
    assert computed_settings(member.recipe) == computed_settings(
        read_recipe(None, ["model_name=m", "learning_rate=5e-6", "dpo_beta=0.05", "seed=3"])
    )


def test_members_do_not_promote_and_hold_no_tracking_uri() -> None:
    sweep = planned(*GRID, "require_approval=true", "tracking_uri=http://me:secret@host")
    for member in sweep.members:
        assert not member.recipe.promote.auto_promote
        assert not member.recipe.promote.require_approval
        assert "secret" not in member.recipe.model_dump_json()
    assert sweep.recipe.promote.require_approval


def test_list_setting_keeps_its_commas_and_varies_by_repetition() -> None:
    sweep = planned("learning_rate=1e-6,5e-6", "lora_targets=q_proj,v_proj")
    assert [member.recipe.model.lora_targets for member in sweep.members] == [("q_proj", "v_proj")] * 2
    sweep = planned("lora_targets=q_proj,v_proj", "--lora-targets", "all-linear")
    assert [member.recipe.model.lora_targets for member in sweep.members] == [("q_proj", "v_proj"), ("all-linear",)]
    assert list(sweep.axes) == ["lora_targets"]


def test_spellings_of_one_setting_are_one_axis() -> None:
    assert planned("train.learning_rate=1e-6", "--learning-rate", "2e-6").axes == {"learning_rate": ("1e-6", "2e-6")}


def test_recipe_file_sets_what_does_not_vary(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatch_size = 7\nlearning_rate = 3e-4\n")
    sweep = plan_sweep(*read_sweep(path, ["dpo_beta=0.1,0.2"]))
    assert {(member.recipe.train.batch_size, member.recipe.train.learning_rate) for member in sweep.members} == {
        (7, 3e-4)
    }


def test_fingerprint_depends_only_on_what_is_computed() -> None:
    same = planned(*GRID, "members_at_once=4", "min_test_accuracy=0.7", "save_every=5")
    assert same.fingerprint == planned(*GRID).fingerprint
    assert planned(*GRID, "batch_size=9").fingerprint != same.fingerprint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rate=1e-6"], "No setting of the sweep varies"),
        ([], "No setting of the sweep varies"),
        (["learning_rat=1e-6,2e-6"], "Did you mean learning_rate"),
        (["learning_rate=1e-6,fast"], "learning_rate=fast cannot be used"),
        (["learning_rate=1e-6,-1"], "learning_rate=-1 cannot be used"),
        (["learning_rate=1e-6,0.000001"], "learning_rate=0.000001 is given twice"),
        (["save_every=5,10"], "save_every cannot vary"),
        (["experiment_name=a,b"], "experiment_name cannot vary"),
        (["members_at_once=1,2"], "members_at_once cannot vary"),
        (["learning_rate=1e-6,5e-6", "log_path=here"], "log_path=here is given"),
        (["learning_rate=1e-6,5e-6", "label_smoothing=0.1", "loss=sigmoid,ipo"], "label_smoothing has no meaning"),
        (["learning_rate"], "is not an assignment"),
    ],
)
def test_invalid_sweeps_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(*words)


def journal(best: float, last: int, total: int = 100, margin: float = 0.05) -> list[StepMetrics]:
    """A run that reaches its best accuracy linearly by the end, evaluated every ten steps."""
    return [
        StepMetrics(
            step=step,
            time=0.0,
            values={"progress": step / total}
            | (
                {
                    "test/accuracy": 0.5 + (best - 0.5) * step / total,
                    "test/accuracy_high": 0.5 + (best - 0.5) * step / total + margin,
                }
                if step % 10 == 0
                else {}
            ),
        )
        for step in range(last + 1)
    ]


GOOD = [journal(0.9, 100), journal(0.95, 100), journal(0.85, 100)]


def test_member_with_its_interval_below_the_median_is_stopped() -> None:
    assert early_stop_reason(journal(0.6, 55), GOOD, 0.5) == (
        "at step 50 its held-out accuracy was 0.600 at most (upper end of the 95 % interval),"
        " below the median 0.700 of 3 other members"
    )


@pytest.mark.parametrize(
    ("own", "others", "why"),
    [
        (journal(0.6, 45), GOOD, "it has done less than half of its steps"),
        (journal(0.6, 100), GOOD, "it has done all its steps"),
        (journal(0.82, 55), GOOD, "its interval reaches the median"),
        (journal(0.6, 55), GOOD[:1], "a single other member is too few"),
        (journal(0.6, 55), [journal(0.9, 40), journal(0.95, 100)], "one of the others has done fewer steps"),
        (journal(0.6, 55), [[], []], "the others have not begun"),
        ([], GOOD, "it has not begun"),
        (journal(0.6, 55)[1:10], GOOD, "it was never evaluated"),
    ],
)
def test_member_that_continues(own: list[StepMetrics], others: list[list[StepMetrics]], why: str) -> None:
    assert early_stop_reason(own, others, 0.5) is None, why


def test_others_are_compared_at_the_same_step() -> None:
    """What the others reach later does not stop a member that is level with them now."""
    assert early_stop_reason(journal(0.95, 20), GOOD, 0.1) is None
    assert early_stop_reason(journal(0.5, 20, margin=0.0), GOOD, 0.1) is not None


@given(st.lists(st.floats(0.5, 1.0), min_size=3, max_size=8), st.integers(10, 99))
def test_the_best_member_is_never_stopped_early(bests: list[float], last: int) -> None:
    runs = [journal(best, last) for best in sorted(bests)]
    assert early_stop_reason(runs[-1], runs[:-1], 0.1) is None


class SweepDirectory:
    """A directory in which sweeps run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(600)))
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("DPO_", "MLFLOW_", "PREFECT_"))}
        self.environment = clean | {"PREFECT_HOME": str(path / "prefect")}
        self.words = [
            "dataset=pairs.jsonl",
            f"model_name={shared('models', 'stories260K')}",
            "renderer_name=role_colon",
            "lora_rank=0",
            "batch_size=4",
            "max_steps=150",
            "max_length=128",
            "eval_every=10",
            "infrequent_eval_every=0",
            "num_samples=1",
            "tasks=none",
            "num_epochs=3",
            "max_new_tokens=8",
            "registered_model_name=swept",
            "stop_hopeless_after=0.1",
            "learning_rate=1e-3,5e-4,1e-12,1e9",
        ]

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", "from flows.cli.main import main; main()", "sweep", *self.words, *words]
        with (self.path / "out").open("a") as out:
            self.sweep = subprocess.Popen(
                command, cwd=self.path, env=self.environment, stdout=out, stderr=out, text=True
            )
        return self.sweep

    def stop(self) -> None:
        """Stop a sweep that still runs."""
        if self.sweep.poll() is None:
            self.sweep.send_signal(signal.SIGINT)
            self.sweep.wait(200)

    @property
    def output(self) -> str:
        return (self.path / "out").read_text()


def wait_until(sweeps: SweepDirectory, sweep: "subprocess.Popen[str]", text: str) -> None:
    deadline = time.monotonic() + 400
    while text not in sweeps.output:
        assert sweep.poll() is None, sweeps.output[-3000:]
        assert time.monotonic() < deadline, sweeps.output[-3000:]
        time.sleep(0.5)


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[SweepDirectory]:
    directory = SweepDirectory(tmp_path)
    yield directory
    directory.stop()


@pytest.mark.slow
def test_a_sweep_stopped_in_the_middle_is_continued_and_its_best_promoted(
    sweeps: SweepDirectory, tmp_path: Path
) -> None:
    stopped = sweeps.start()
    wait_until(sweeps, stopped, "learning_rate=5e-4: started")
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(200) == 75, sweeps.output[-3000:]
    assert "To continue it, repeat the command." in sweeps.output

    (tmp_path / "out").write_text("")
    again = sweeps.start("members_at_once=2")
    assert again.wait(400) == TrainingError.exit_code, sweeps.output[-3000:]  # one member failed, the others are done
    assert "learning_rate=1e-12: stopped early (at step " in sweeps.output
    assert "learning_rate=1e9: failed" in sweeps.output
    [folder] = (tmp_path / "runs" / "sweeps").iterdir()
    stages = (folder / "learning_rate=1e-3.log").read_text().splitlines()
    assert [line for line in stages if line.endswith(": done")] == ["promote: done"]
    assert "acquire: cached" in (folder / "learning_rate=1e-12.log").read_text()

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpo")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    [parent] = [run for run in runs.values() if "dpo.sweep" in run.data.tags]
    children = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    status = {run.data.params["learning_rate"]: run.info.status for run in children}
    assert status == {"0.001": "FINISHED", "0.0005": "FINISHED", "1e-12": "KILLED", "1000000000.0": "FAILED"}
    assert len(runs) == 5
    assert parent.info.status == "FINISHED"
    assert parent.data.params["learning_rate"] == "1e-3, 5e-4, 1e-12, 1e9"
    assert {found.path for found in client.list_artifacts(parent.info.run_id)} == {
        "sweep.png",
        "sweep.md",
        "comparison",
    }

    best = client.get_model_version_by_alias("swept", "champion")
    assert best.version == client.get_model_version_by_alias("swept", "candidate").version
    scores = {run.info.run_id: run.data.metrics.get("after/test/accuracy", -math.inf) for run in children}
    assert scores[best.run_id or ""] == max(scores.values())
    assert best.tags["dpo.gate.against_champion"].startswith("passed")
    assert "To repeat this sweep:" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_a_supervisor_that_ends_a_sweep_leaves_nothing_running(sweeps: SweepDirectory) -> None:
    ended = sweeps.start()
    wait_until(sweeps, ended, "learning_rate=1e-3: started")
    started = psutil.Process(ended.pid).children(recursive=True)
    assert len(started) >= 2  # Prefect's server and the member
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(200) == 75, sweeps.output[-3000:]
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
