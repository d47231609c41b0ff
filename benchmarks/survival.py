"""Overhead of journal, checkpoints and MLflow: the same training steps bare, with the first two, and with all three.

    python benchmarks/survival.py [--steps 100] [--save-every 20] [--rounds 3]

A Llama of the demo's size on pairs of 60 tokens. Every round of a variant runs in its own process, and its fastest
round counts. Then the projection of a long journal into a new sqlite store is timed. Prints a table and, last, one JSON
line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = ("bare", "journal and checkpoints", "and MLflow")
SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
JOURNAL_STEPS = 5000


def main() -> None:
    """Measure every variant, then the projection of a long journal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(train(options)))
        return
    seconds = {variant: min(measure(variant, options) for _ in range(options.rounds)) for variant in VARIANTS}
    print(f"{'':28}{'ms a step':>12}{'more':>9}")
    for variant, step_s in seconds.items():
        print(f"{variant:28}{step_s * 1000:12.1f}{step_s / seconds['bare'] - 1:9.1%}")
    rate = projection_rate()
    print(f"a journal of {JOURNAL_STEPS} steps into a new sqlite store: {rate:.0f} metrics/s")
    overhead = {variant: step_s / seconds["bare"] - 1 for variant, step_s in seconds.items()}
    print(json.dumps({"seconds_a_step": seconds, "overhead": overhead, "metrics_per_s": rate}))


def measure(variant: str, options: argparse.Namespace) -> float:
    """Seconds per step of a run in its own process; this process follows its journal, as the flow's does."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        arguments = ["--steps", str(options.steps), "--save-every", str(options.save_every)]
        arguments += ["--batch-size", str(options.batch_size), "--variant", variant, "--directory", folder]
        with follow_journal(directory) if variant == VARIANTS[2] else nullcontext():
            process = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
        return float(json.loads(process.stdout.splitlines()[-1]))


def follow_journal(directory: Path) -> AbstractContextManager[Any]:
    """A follower that projects the run's journal into a new store."""
    from flows.tracking.journal_follower import Follower  # lazy: mlflow, which the training process does not import

    return Follower(lambda: open_run(directory), directory)


def open_run(directory: Path) -> Any:
    """An MLflow run in a new store."""
    from dpo_core.config.recipe import Recipe, TrackSettings
    from flows.tracking import mlflow_run

    track = TrackSettings(tracking_uri=f"sqlite:///{directory}/mlflow.db")
    return mlflow_run.open_run(track, Recipe(track=track), "benchmark", "f00d")


def train(options: argparse.Namespace) -> float:
    """Seconds per step after the first, until the last checkpoint is on disk."""
    import product  # lazy, as all of these: the parent process does not need them

    from dpo_core.config.recipe import ModelSettings, TrainSettings
    from dpo_core.train.checkpoint import checkpoint_state, journal
    from dpo_core.train.checkpoint.checkpoint_writer import CheckpointWriter
    from dpo_core.train.loop import steps

    settings = TrainSettings(
        batch_size=options.batch_size,
        learning_rate=1e-5,
        token_budget=4096,
        save_every=options.save_every,
        reference_mode="on_the_fly",
    )
    rng = np.random.default_rng(0)
    rows = [
        {f"{part}_ids": rng.integers(10, 1024, 20).tolist() for part in ("prompt", "chosen", "rejected")}
        for _ in range(options.batch_size * options.steps)
    ]
    setup = product.Setup(SHAPE, ModelSettings(lora_rank=0), settings)
    with tempfile.TemporaryDirectory() as directory:
        run = product.benchmark_session(Path(directory), setup, rows)[0].run
        started = 0.0
        with CheckpointWriter(options.directory, settings, print) as writer:
            for metrics in steps(run):
                if options.variant != VARIANTS[0]:
                    journal.append(options.directory / "metrics.jsonl", journal.to_row(metrics))
                    writer.check()
                    if writer.due(metrics.step):
                        writer.save(
                            checkpoint_state.take_snapshot(
                                options.directory, run.policy, run.optimizer, metrics.step, {}
                            )
                        )
                started = started or time.perf_counter()
            writer.wait()
        return (time.perf_counter() - started) / (options.steps - 1)


def projection_rate() -> float:
    """Metrics per second of the projection of a long journal."""
    from dpo_core.train.checkpoint import journal
    from flows.tracking import mlflow_run

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        handle = open_run(directory)
        values = {f"metric/{number}": 0.5 for number in range(20)}
        rows = [{"step": step, "time": 1e9 + step, **values} for step in range(1, JOURNAL_STEPS + 1)]
        journal.rewrite(directory / "metrics.jsonl", rows)
        started = time.perf_counter()
        mlflow_run.log_journal(handle, directory)
        return JOURNAL_STEPS * len(values) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
