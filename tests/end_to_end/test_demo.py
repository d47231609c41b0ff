"""The built-in demo reaches the figures of the README."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def evaluations(directory: Path) -> dict[str, dict[str, Any]]:
    """Metrics of the base and of the trained model."""
    records = [json.loads(path.read_text()) for path in directory.glob("runs/store/evaluate/*/record.json")]
    base, trained = sorted((record["metrics"] for record in records), key=lambda metrics: metrics["test/margin"])
    return {"base": base, "trained": trained}


@pytest.mark.slow
def test_the_demo_reaches_its_targets(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DPO_", "MLFLOW_", "PREFECT_"))}
    process = subprocess.run(
        [sys.executable, "-c", "from flows.cli.main import main; main()", "demo"],
        cwd=tmp_path,
        env=clean | {"PREFECT_HOME": str(tmp_path / "prefect"), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    measured = evaluations(tmp_path)
    base, trained = measured["base"], measured["trained"]
    assert base["prompt_strict_acc"] <= 0.50  # 0.39 to 0.45 over four seeds: there must be something left to learn
    # A little below what LAB.md records: other processors round differently, and training carries that far.
    assert trained["prompt_strict_acc"] >= 0.90
    assert trained["test/accuracy"] >= 0.90
    assert trained["test/nll_chosen"] <= base["test/nll_chosen"]
    assert trained["loop_share"] <= 0.02
    assert trained["ended_share"] >= 0.98
    assert "is promoted over its base" in process.stdout
