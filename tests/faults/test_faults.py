"""Fault injection in short; ``make faults`` injects at least two hundred faults."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, shared
from tests.faults.trials import TRIALS


@pytest.mark.slow
def test_runs_survive_a_fault_of_every_kind() -> None:
    shared("models", "stories260K")
    process = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--injections", "40"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout + process.stderr[-4000:]
    counts = json.loads(process.stdout.splitlines()[-1])
    assert set(counts) == set(TRIALS)
    assert sum(kind["injected"] for kind in counts.values()) >= 40
