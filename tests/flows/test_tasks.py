"""Tasks: a killed process is retried and other errors are not; a failed run is closed in MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.errors import EvaluationError, StoppedError
from dpo_core.train.checkpoint import run_dir
from flows.registry.versions import Candidate
from flows.tasks import StageTasks
from flows.tracking.mlflow_run import RunHandle, run_name

SCRIPT = """
from flows import tasks
tasks.RETRY_DELAYS_S[:] = [0, 0]
from prefect import flow
from dpo_core.errors import DiedError, RecipeError
from dpo_core.records import DataReport
from dpo_core.stages.stage import StageResult

tries = {"died": 0, "bad": 0}

def died():
    tries["died"] += 1
    if tries["died"] < 3:
        raise DiedError("found", "rule", "remedy")
    return StageResult(DataReport(rows_read=1, kept=1), False)

def bad():
    tries["bad"] += 1
    raise RecipeError("found", "rule", "remedy")

@flow
def both():
    tasks.run_as_task("died", died)
    tasks.run_as_task("bad", bad)

try:
    both()
except RecipeError:
    print(tries)
"""


@pytest.mark.slow
def test_a_killed_stage_is_retried_and_a_wrong_setting_is_not(tmp_path: Path) -> None:
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | own, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.splitlines()[-1] == "{'died': 3, 'bad': 1}", result.stderr[-2000:]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EvaluationError("found", "rule", "remedy"), "FAILED"),
        (StoppedError("found", "rule", "remedy"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_run_whose_evaluation_fails_is_closed(
    recipe: Recipe, run: RunHandle, candidate: Candidate, error: BaseException, status: str
) -> None:
    config = {"origin": "f00d"}
    config |= {run_dir.DIGEST: fingerprint.of_value(config)}
    (candidate.checkpoint.log_path / run_dir.CONFIG).write_text(json.dumps(config))
    tasks = StageTasks(recipe)
    tasks.records["train"] = candidate.checkpoint
    with pytest.raises(type(error)), tasks:
        raise error
    assert run.client.get_run(run.run_id).info.status == status


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("hhh-gpt2-1", "lr3e-05 beta0.1 hhh-gpt2-1"),
        ("learning_rate=3e-5_dpo_beta=0.5", "lr3e-5_beta0.5"),
        ("max_length=512_seed=1", "max_length=512_seed=1"),
    ],
)
def test_a_name_begins_with_what_distinguishes_runs(recipe: Recipe, directory: str, name: str) -> None:
    assert run_name(recipe, Path("runs") / directory) == name
