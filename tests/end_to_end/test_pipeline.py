"""The pipeline without an orchestrator, each stage in its own process, on a real tiny Llama."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_core.train.checkpoint import journal
from tests.conftest import pair_rows

STAGES = ("acquire", "render", "warm_start", "score_reference", "train", "evaluate the base", "evaluate")


class Place:
    """A directory with a dataset, and the command that runs the pipeline in it."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.words = [
            f"dataset={path / 'pairs.jsonl'}",
            f"model_name={model}",
            "renderer_name=role_colon",
            "lora_rank=4",
            "batch_size=4",
            "learning_rate=1e-2",
            "max_steps=6",
            "max_length=128",
            "eval_every=3",
            "save_every=2",
            "max_new_tokens=8",
            "num_samples=2",
            "tasks=",
        ]
        (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))

    def start(self, *words: str, last: str = "run") -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dpo_core", last, *self.words, *words]
        return subprocess.Popen(
            command, cwd=self.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
        )

    def run(self, *words: str, last: str = "run") -> dict[str, str]:
        """Run the command; returns the line of each stage, by stage."""
        process = self.start(*words, last=last)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        lines = (line.partition(": ") for line in out.splitlines())
        return {stage: rest for stage, _, rest in lines if stage in STAGES}

    def run_uncached(self, *words: str) -> list[str]:
        """Run the command; returns the stages that were not cached."""
        return [stage for stage, line in self.run(*words).items() if line.startswith("done")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Place:
    place = Place(tmp_path_factory.mktemp("pipeline"), stories)
    place.run()
    return place


@pytest.mark.slow
def test_the_second_run_is_all_cache_hits_in_under_five_seconds(place: Place) -> None:
    started = time.monotonic()
    assert place.run_uncached() == []
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_changed_beta_reruns_training_onward_and_nothing_before(place: Place) -> None:
    # The base's evaluation is on the same pairs, but its loss and margins are scaled by beta.
    assert place.run_uncached("dpo_beta=0.2") == ["train", "evaluate the base", "evaluate"]


@pytest.mark.slow
def test_a_damaged_or_deleted_output_is_rebuilt_the_same(place: Place) -> None:
    [arrow] = place.path.glob("runs/store/render/*/train.arrow")
    before = arrow.read_bytes()
    arrow.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert place.run_uncached() == ["render"]
    assert arrow.read_bytes() == before
    [reference] = place.path.glob("runs/store/score_reference/*/train.safetensors")
    reference.unlink()
    assert place.run_uncached() == ["score_reference"]


@pytest.mark.slow
def test_a_stage_that_the_run_skips_is_the_last_when_it_is_named(place: Place) -> None:
    assert list(place.run("sft_steps=0", last="warm_start")) == ["acquire", "render", "warm_start"]


@pytest.mark.slow
@pytest.mark.main_job
def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_continues_with_the_same_result(
    place: Place, tmp_path_factory: pytest.TempPathFactory, stories: Path
) -> None:
    words = ("max_steps=60", "num_epochs=20", "eval_every=0", "save_every=0", "infrequent_eval_every=0")
    place.run(*words, "log_path=whole")
    other = Place(tmp_path_factory.mktemp("interrupted"), stories)
    process = other.start(*words, "log_path=cut")
    metrics = other.path / "cut" / "metrics.jsonl"
    while process.poll() is None and len(journal.read(metrics)) < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "Stopped after step" in error
    assert "Run the same command again" in error
    assert "Traceback" not in error
    done = len(journal.read(metrics)) - 1
    assert 4 <= done < 60

    other.run(*words, "log_path=cut")
    cut, whole = (journal.read_steps(root / "metrics.jsonl") for root in (other.path / "cut", place.path / "whole"))
    assert [step.step for step in cut] == [step.step for step in whole]
    assert [step.values.get("dpo_loss") for step in cut] == [step.values.get("dpo_loss") for step in whole]
    final = [root / "final" / "model.safetensors" for root in (other.path / "cut", place.path / "whole")]
    assert final[0].read_bytes() == final[1].read_bytes()


@pytest.mark.slow
def test_a_stop_before_the_export_leaves_that_to_the_same_command(
    tmp_path_factory: pytest.TempPathFactory, stories: Path
) -> None:
    """Interrupted in the last step, with its checkpoint written."""
    other = Place(tmp_path_factory.mktemp("unexported"), stories)
    slow = ("infrequent_eval_every=1", "num_samples=4", "max_new_tokens=300")  # the evaluation after the last step
    words = ("max_steps=1", "eval_every=1", "log_path=log", *slow)
    process, metrics = other.start(*words), other.path / "log" / "metrics.jsonl"
    while process.poll() is None and not journal.read(metrics):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "Stopped after the last step, 1, before the export." in error
    assert not (other.path / "log" / "final").exists()
    other.run(*words)
    assert (other.path / "log" / "final" / "model.safetensors").is_file()
    assert [row.step for row in journal.read_steps(metrics)] == [0, 1]
    assert "export/nats_a_reply" in journal.read_steps(metrics)[-1].values


@pytest.mark.slow
def test_a_finished_run_is_extended_to_the_end_of_a_longer_one(place: Place) -> None:
    words = ("lr_schedule=constant", "infrequent_eval_every=0")
    place.run(*words, "log_path=extended", "max_steps=4")
    first = (place.path / "extended" / "metrics.jsonl").read_bytes()
    assert "train" in place.run_uncached(*words, "log_path=extended")
    assert (place.path / "extended" / "metrics.jsonl").read_bytes().startswith(first)
    shutil.rmtree(
        place.path / "runs" / "store" / "train"
    )  # the longer run must not reuse the output of the extended one
    place.run(*words, "log_path=longer")
    extended, longer = (journal.read_steps(place.path / name / "metrics.jsonl") for name in ("extended", "longer"))
    assert [step.values.get("dpo_loss") for step in extended] == [step.values.get("dpo_loss") for step in longer]
    final = [place.path / name / "final" / "model.safetensors" for name in ("extended", "longer")]
    assert final[0].read_bytes() == final[1].read_bytes()
    assert "Continuing after step 4" in (place.path / "extended" / "logs.log").read_text()
    shorter = place.start(*words, "log_path=extended", "max_steps=2")
    assert "max_steps: 6 there, 2 now" in shorter.communicate(timeout=60)[1]
    assert shorter.returncode == 2


@pytest.mark.slow
def test_the_reference_is_scored_for_the_pairs_of_a_run_and_extended_by_those_of_a_longer_run(
    tmp_path: Path, stories: Path
) -> None:
    place = Place(tmp_path, stories)  # 36 pairs to train on, 4 held out, 4 a step

    def scored(*words: str) -> str:
        line = place.run(*words, last="score_reference")["score_reference"]
        return re.sub(r" in [\d.]+ s|path=[^,]*, ", "", line)

    assert scored("max_steps=3") == "done, train_pairs=12, test_pairs=4, copied_pairs=0"
    assert scored("max_steps=3", "token_budget=512").startswith("cached, train_pairs=12")
    assert scored("max_steps=6") == "done, train_pairs=24, test_pairs=4, copied_pairs=16"
    assert scored("max_steps=12", "num_epochs=2") == "done, train_pairs=36, test_pairs=4, copied_pairs=28"
    assert scored("max_steps=3", "seed=1") == "done, train_pairs=12, test_pairs=4, copied_pairs=16"


@pytest.mark.slow
def test_the_files_of_a_run(place: Place) -> None:
    log_path = min(place.path.glob("runs/pairs-*"))
    rows = journal.read(log_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "test/nll" in row] == [0, 3, 6]
    assert rows[1]["dpo_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert rows[1]["accuracy"] == 0.5
    names = [row["name"] for row in journal.read(log_path / "checkpoints.jsonl")]
    assert names == ["000002", "000004", "000006", "final"]
    assert {row["step"] for row in journal.read(log_path / "samples.jsonl")} == {0, 6}
    assert "step 6/6" in (log_path / "logs.log").read_text()


@pytest.mark.slow
def test_the_checkpoint_with_the_best_ifeval_metric_is_saved(place: Place, four_prompts: Path) -> None:
    """Evaluators run before the first step, at their intervals and at the end; each new best is a checkpoint."""
    words = ("tasks=ifeval", f"ifeval_path={four_prompts}", "infrequent_prompts=4", "infrequent_eval_every=2")
    best = ("best_metric=test/ifeval_inst_loose", "save_every=0", "keep_checkpoints=1", "log_path=watched")
    place.run(*words, *best, "max_steps=7")
    rows = journal.read(place.path / "watched" / "metrics.jsonl")
    scores = {row["step"]: row["test/ifeval_inst_loose"] for row in rows if "test/ifeval_inst_loose" in row}
    assert list(scores) == [0, 2, 4, 6, 7]
    assert [row["step"] for row in rows if "test/accuracy" in row] == [0, 3, 6, 7]
    rising = [
        step for step in scores if step and all(scores[step] > scores[other] for other in scores if 0 < other < step)
    ]
    saved = [row["step"] for row in journal.read(place.path / "watched" / "checkpoints.jsonl")]
    assert saved == [*dict.fromkeys([*rising, 7]), 7]
    kept = {int(path.name) for path in (place.path / "watched" / "checkpoints").iterdir()}
    assert kept == {
        max(step for step in saved if scores[step] == max(scores[other] for other in saved)),
        7,
    }
    refused = place.start(*words, "best_metric=test/ifeval_inst_lose", "log_path=refused")
    assert "Did you mean test/ifeval_inst_loose" in refused.communicate(timeout=100)[1]


@pytest.fixture
def four_prompts(tmp_path: Path) -> Path:
    """Four prompts, easy and hard."""
    kinds = ("punctuation:no_comma", "startend:quotation", "change_case:english_lowercase", "detectable_format:title")
    rows = [
        {"key": key, "prompt": f"Tell me about story {key}.", "instruction_id_list": [kind], "kwargs": [{}]}
        for key, kind in enumerate(kinds)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
