"""What never losing a run costs: the same steps bare, with journal and checkpoints, and with MLflow following.

    python benchmarks/survival.py [--steps 100] [--save-every 20] [--rounds 3]

A Llama of the demo's size on pairs of 60 tokens; ways of running take turns, each in a process of its own, and the
fastest round of each counts. Then: how fast a long journal is projected into a new sqlite store. Prints a table and,
last, one JSON line.
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

WAYS = ("bare", "journal and checkpoints", "and MLflow")
SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
LONG = 5000


def main() -> None:
    """Take turns, then project a long journal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(train(options)))
        return
    seconds = {way: min(measure(way, options) for _ in range(options.rounds)) for way in WAYS}
    print(f"{'':28}{'ms a step':>12}{'more':>9}")
    for way, told in seconds.items():
        print(f"{way:28}{told * 1000:12.1f}{told / seconds['bare'] - 1:9.1%}")
    rate = projection()
    print(f"a journal of {LONG} steps into a new sqlite store: {rate:.0f} metrics/s")
    overhead = {way: told / seconds["bare"] - 1 for way, told in seconds.items()}
    print(json.dumps({"seconds_a_step": seconds, "overhead": overhead, "metrics_per_s": rate}))


def measure(way: str, options: argparse.Namespace) -> float:
    """Seconds a step, of a run in its own process; MLflow is followed from this one, as from a flow's."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = ["--steps", str(options.steps), "--save-every", str(options.save_every)]
        words += ["--batch-size", str(options.batch_size), "--way", way, "--place", folder]
        with following(place) if way == WAYS[2] else nullcontext():
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1]))


def following(place: Path) -> AbstractContextManager[Any]:
    """A follower of the run's journal, into a store of its own."""
    from flows.tracking.journal_follower import Follower  # lazy: mlflow, which the training process does without

    return Follower(lambda: opened(place), place)


def opened(place: Path) -> Any:
    """A run in a new store."""
    from dpo_core.config.recipe import Recipe, TrackSettings
    from flows.tracking import mlflow_run

    track = TrackSettings(tracking_uri=f"sqlite:///{place}/mlflow.db")
    return mlflow_run.open_run(track, Recipe(track=track), "benchmark", "f00d")


def train(options: argparse.Namespace) -> float:
    """Seconds a step after the first, until the last checkpoint is on the disk."""
    import product  # lazy, as all of these: the parent has no need of them

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
    with tempfile.TemporaryDirectory() as place:
        run = product.session(Path(place), setup, rows)[0].run
        started = 0.0
        with CheckpointWriter(options.place, settings, print) as saver:
            for metrics in steps(run):
                if options.way != WAYS[0]:
                    journal.append(options.place / "metrics.jsonl", journal.to_row(metrics))
                    saver.check()
                    if saver.due(metrics.step):
                        saver.save(
                            checkpoint_state.take_snapshot(options.place, run.policy, run.optimizer, metrics.step, {})
                        )
                started = started or time.perf_counter()
            saver.wait()
        return (time.perf_counter() - started) / (options.steps - 1)


def projection() -> float:
    """Metrics a second of a long journal."""
    from dpo_core.train.checkpoint import journal
    from flows.tracking import mlflow_run

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        handle = opened(place)
        values = {f"metric/{number}": 0.5 for number in range(20)}
        rows = [{"step": step, "time": 1e9 + step, **values} for step in range(1, LONG + 1)]
        journal.rewrite(place / "metrics.jsonl", rows)
        started = time.perf_counter()
        mlflow_run.project(handle, place)
        return LONG * len(values) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
