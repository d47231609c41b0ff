"""Benchmarks measure what the product runs: their training runs come from the product's own session, and start well."""

import ast
import math
from pathlib import Path

import pytest

from tests.conftest import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
# What sets a run up, which is the session's business alone.
SETUP = {
    "Run",
    "OnTheFlyReference",
    "References",
    "adamw",
    "compiled",
    "compile_layers",
    "prepared",
    "make_trainable",
    "choose",
    "find",
}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_no_benchmark_sets_a_run_up_by_itself(path: Path) -> None:
    imported = {
        name.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpo_core")
        for name in node.names
    }
    assert imported & SETUP == set()


def test_a_benchmarks_run_is_the_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import product
    from dpo_step import SHAPES

    from dpo_core.config.recipe import ModelSettings, TrainSettings
    from dpo_core.train.loop import steps

    rows = [
        {f"{part}_ids": [10 + row, 20, 30 + len(part)] for part in ("prompt", "chosen", "rejected")} for row in range(8)
    ]
    train = TrainSettings(batch_size=4, precision="bf16", reference_mode="cached", token_budget=512)
    session, _ = product.benchmark_session(
        tmp_path, product.Setup(SHAPES["tiny"], ModelSettings(lora_rank=4), train), rows
    )
    told = [step.values for step in steps(session.run)]
    assert told[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (session.run.layout, len(told), told[0]["num_tokens"]) == ("tree", 2, 4 * 12)
