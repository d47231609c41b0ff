"""A training run that never ran, as it lies on the disk, and a server for its store."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_core.config.recipe import TrackSettings
from dpo_core.records import Checkpoint, DataReport, EvalResult, PairSet, RenderedSet
from flows.cli import ui
from flows.registry.versions import Candidate
from flows.tracking import mlflow_run


@contextmanager
def served(track: TrackSettings, port: int) -> Iterator[TrackSettings]:
    """The store behind a real server."""
    with ui.running_server(str(track.tracking_uri), port) as (_, address):
        yield track.model_copy(update={"tracking_uri": address})


def row(step: int, time: float = 1.79e9) -> dict[str, Any]:
    """A line of a journal; step 0 holds the evaluation alone."""
    gain = 1 - math.exp(-step / 40)
    test = {"test/accuracy": 0.5 + 0.4 * gain, "test/nll": 1.0 + 0.1 * gain}
    train = {"dpo_loss": math.log(2) - 0.5 * gain, "accuracy": 0.5 + 0.45 * gain, "margin": 2 * gain, "grad_norm": 1.5}
    return {"step": step, "time": time + step, **(train if step else {}), **(test if step % 10 == 0 else {})}


def write_journal(log_path: Path, last: int, time: float = 1.79e9) -> None:
    log_path.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row(step, time)) + "\n" for step in range(last + 1)]
    aside = log_path / "metrics.written"
    aside.write_text("".join(lines))
    aside.replace(log_path / "metrics.jsonl")


def steps_of(handle: mlflow_run.RunHandle, metric: str) -> list[int]:
    return sorted(point.step for point in handle.client.get_metric_history(handle.run_id, metric))


def evaluation(path: Path, followed: list[bool], accuracy: float, **other: str) -> EvalResult:
    """An evaluation's output as the stage leaves it."""
    path.mkdir(parents=True)
    outcomes = [
        {"key": key, "prompt": f"prompt {key}", "response": "…", "strict": [mark], "loose": [mark], "error": None}
        | {"instruction_id_list": [("punctuation:no_comma", "detectable_format:title")[key % 2]]}
        for key, mark in enumerate(followed)
    ]
    samples = [{"prompt": f"prompt {key}", "answer": f"{path.name} says {key}"} for key in range(3)]
    rewards = [{"chosen": 0.1 * key, "rejected": -0.05 * key} for key in range(20)]
    for name, lines in (("outcomes", outcomes), ("samples", samples), ("rewards", rewards)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ifeval.eval").write_bytes(b"log")
    (path / "record.json").write_text("{}")
    share = sum(followed) / len(followed)
    interval = {"test/accuracy_low": accuracy - 0.03, "test/accuracy_high": min(1, accuracy + 0.03)}
    return EvalResult(
        path=path,
        fingerprint=f"{path.name}{accuracy}{share}",
        model_name="tiny",
        model_fingerprint="m",
        prompts_fingerprint=other.get("prompts", "p"),
        pairs_fingerprint=other.get("pairs", "q"),
        tasks={"ifeval": "1"},
        settings={"eval_seed": 0, "eval_temperature": 0.0, "max_new_tokens": int(other.get("max_new_tokens", 96))},
        failed=0,
        metrics={"prompt_strict_acc": share, "test/accuracy": accuracy, "test/num_pairs": 300.0, **interval},
    )


def with_task(result: EvalResult, **metrics: float) -> EvalResult:
    """The evaluation, as if the task caps had been asked too."""
    told = {f"caps/{name}": value for name, value in metrics.items()}
    update = {"tasks": result.tasks | {"caps": "1"}, "metrics": result.metrics | told}
    return result.model_copy(update=update)


def candidate(tmp_path: Path) -> Candidate:
    """A trained model, its weights a few bytes."""
    log_path, report = tmp_path / "run", DataReport(rows_read=110, kept=100, dropped={"equal sides": 10})
    write_journal(log_path, 20)
    final = log_path / "final"
    final.mkdir()
    (final / "model.safetensors").write_bytes(b"weights")
    (final / "config.json").write_text("{}")
    (final / "dpo.json").write_text('{"renderer_name": "role_colon"}')
    shared = {"path": tmp_path, "train_pairs": 100, "test_pairs": 10, "train_report": report, "test_report": report}
    return Candidate(
        Checkpoint(path=final, fingerprint="c", name="final", step=20, log_path=log_path, renderer_name="role_colon"),
        PairSet(fingerprint="d", dataset="hhh", source="Anthropic/hh-rlhf@c0ffee", **shared),
        RenderedSet(
            fingerprint="r", renderer_name="role_colon", tokenizer_path=tmp_path, tokens=9, truncated=0, **shared
        ),
        evaluation(tmp_path / "base", [False] * 60 + [True] * 40, 0.5),
        evaluation(tmp_path / "trained", [False] * 10 + [True] * 90, 0.9),
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
