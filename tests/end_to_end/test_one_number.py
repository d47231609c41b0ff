"""Held-out accuracy after a run is one value everywhere: that of the exported weights."""

import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rich.console import Console
from safetensors import safe_open

from dpo_core.records import Checkpoint, EvalResult, ModelVersion, Record
from dpo_core.train.checkpoint import journal
from flows.cli import final_summary
from flows.registry import champion
from tests.end_to_end.test_pipeline import Place

R = TypeVar("R", bound=Record)

KINDS = {
    "LoRA bf16": ("lora_rank=4", "precision=bf16", "learning_rate=1e-4"),
    "full fp32": ("lora_rank=0", "precision=fp32", "learning_rate=1e-5"),
    "LoRA bf16, exported in float32": ("lora_rank=4", "precision=bf16", "learning_rate=1e-4", "export_dtype=float32"),
    "full fp32, exported in bf16": ("lora_rank=0", "learning_rate=1e-5", "export_dtype=bfloat16"),
}
WORDS = ("max_steps=4", "eval_every=3", "save_every=0", "infrequent_eval_every=0", "log_path=run")


class Finished:
    """A run's journal and records."""

    def __init__(self, place: Place, *words: str) -> None:
        self.place, self.words = place, words
        self.stages_run = place.run_uncached(*WORDS, *words)
        self.log_path = place.path / "run"
        self.rows = journal.read(self.log_path / "metrics.jsonl")
        self.checkpoint = self.record("train", Checkpoint)[0]
        found = {result.model_fingerprint: result for result in self.record("evaluate", EvalResult)}
        self.trained = found.pop(self.checkpoint.fingerprint)
        [self.base] = found.values()

    def record(self, stage: str, kind: type[R]) -> list[R]:
        paths = self.place.path.glob(f"runs/store/{stage}/*/record.json")
        return [kind.model_validate_json(path.read_text()) for path in paths]


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Finished:
    return Finished(Place(tmp_path_factory.mktemp("one"), stories), *KINDS[request.param])


def held_out(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("test/")}


@pytest.mark.slow
def test_journal_evaluation_table_and_gate_agree(finished: Finished) -> None:
    last, trained = finished.rows[-1], finished.trained
    assert last["step"] == 4
    assert held_out(last) == held_out(trained.metrics)
    [row] = [line for line in render_table(finished).splitlines() if "held-out preference accuracy" in line]
    assert row.strip("│ ").split("│")[2].strip().startswith(f"{last['test/accuracy']:.3f} [")
    version = ModelVersion(name="m", version=1, run_id="r", experiment_id="1", tracking_uri="u", model_uri="models:/m")
    ours = champion.measured_version(version, finished.base, trained).measured
    assert (ours.accuracy, ours.margin_noise) == (last["test/accuracy"], last["export/margin_noise"])
    assert ours.accuracy_interval_beyond_noise.value == last.get("test/accuracy_beyond_noise", last["test/accuracy"])


def render_table(finished: Finished) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(final_summary.summary_table(finished.base, finished.trained, finished.checkpoint.export))
    return captured.get()


@pytest.mark.slow
def test_step_0_has_the_metrics_of_the_base(finished: Finished) -> None:
    first = finished.rows[0]
    assert first["step"] == 0
    assert held_out(first) == held_out(finished.base.metrics)
    assert first["test/accuracy"] == 0.5
    assert first["test/margin"] == 0


@pytest.mark.slow
def test_the_last_row_has_the_metrics_of_the_export(finished: Finished) -> None:
    export_metrics = {name: value for name, value in finished.rows[-1].items() if name.startswith("export/")}
    assert export_metrics.items() >= finished.checkpoint.export.items()
    assert export_metrics["export/num_pairs"] == finished.rows[-1]["test/num_pairs"]
    low, mean, high = (export_metrics[f"export/nats_a_reply{end}"] for end in ("_low", "", "_high"))
    assert low <= mean <= high
    # float32 weights are exported unchanged; bf16 weights are rounded, which is measured.
    if "precision=bf16" in finished.words or "export_dtype=bfloat16" in finished.words:
        assert 0 < mean < 5
        assert export_metrics["export/margin_noise"] > 0
    else:
        assert (mean, export_metrics["export/margin_noise"]) == (0, 0)
    assert all("export/nats_a_reply" not in row for row in finished.rows[:-1])


@pytest.mark.slow
def test_the_weights_have_the_requested_dtype(finished: Finished) -> None:
    export_dtype = next((word.partition("=")[2] for word in finished.words if word.startswith("export_dtype")), None)
    auto = "bfloat16" if "precision=bf16" in finished.words else "float32"
    with safe_open(finished.checkpoint.path / "model.safetensors", "pt") as weights:
        types = {str(weights.get_tensor(name).dtype) for name in weights.keys()}  # noqa: SIM118
    assert types == {f"torch.{export_dtype or auto}"}
    assert json.loads((finished.checkpoint.path / "config.json").read_text())["dtype"] == (export_dtype or auto)


@pytest.mark.slow
def test_a_run_killed_while_it_exports_ends_the_same(finished: Finished) -> None:
    """Killed when the last checkpoint is complete and the last step is not yet in the journal."""
    before = {path.name: path.read_bytes() for path in finished.checkpoint.path.iterdir()}
    [output] = finished.place.path.glob("runs/store/train/*/record.json")
    shutil.rmtree(output.parent)
    shutil.rmtree(finished.checkpoint.path)
    metrics = finished.log_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))

    again = Finished(finished.place, *finished.words)
    assert again.stages_run == ["train"]
    assert [timeless(row) for row in again.rows] == [timeless(row) for row in finished.rows]
    assert {path.name: path.read_bytes() for path in again.checkpoint.path.iterdir()} == before


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(("time", "perf/", "batch_time"))}
