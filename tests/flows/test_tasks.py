"""What is tried again: a process that was killed, and nothing that would only repeat itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from flows import tasks
tasks.RETRY_DELAYS_S = [0, 0]
from prefect import flow
from dpo_core.errors import DiedError, RecipeError
from dpo_core.produce import Produced
from dpo_core.records import DataReport

tries = {"died": 0, "bad": 0}

@tasks.stage("died")
def died():
    tries["died"] += 1
    if tries["died"] < 3:
        raise DiedError("found", "rule", "remedy")
    return Produced(DataReport(rows_read=1, kept=1), False)

@tasks.stage("bad")
def bad():
    tries["bad"] += 1
    raise RecipeError("found", "rule", "remedy")

@flow
def both():
    died()
    bad()

try:
    both()
except RecipeError:
    print(tries)
"""


@pytest.mark.slow
def test_a_killed_stage_is_tried_again_and_a_wrong_setting_is_not(tmp_path: Path) -> None:
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | own, capture_output=True, text=True, timeout=300
    )
    assert told.stdout.splitlines()[-1] == "{'died': 3, 'bad': 1}", told.stderr[-2000:]
