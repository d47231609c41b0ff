"""Growth of the cost of DPO training with the number of pairs, the vocabulary, and the length of prompts.

    python benchmarks/linear.py [--steps 3]

One factor at a time is four times as large; each case runs in its own process. ``time`` and ``arithmetic`` (useful
FLOP) are per pair and relative to the first case: equal growth is linear cost. ``activations`` is the peak memory
beyond the process before its first step and the bytes of the parameters (weight, gradient, two moments): it must not
grow with vocabulary × length. Prints a table and, last, one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BYTES_A_PARAMETER = 16  # float32 weight, gradient and AdamW's two moments
BASE = {"pairs": 8, "vocabulary": 16_000, "prompt": 128, "completion": 48}
CASES = {
    "base": {},
    "pairs ×4": {"pairs": 32},
    "vocabulary ×4": {"vocabulary": 64_000},
    "prompts ×4": {"prompt": 512},
    "vocabulary and prompts ×4": {"vocabulary": 64_000, "prompt": 512},
}


def main() -> None:
    """Run each case and compare it with the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(BASE | CASES[options.case], options.steps)))
        return
    figures = {case: measure(case, options.steps) for case in CASES}
    first = next(iter(figures.values()))
    print(f"{'':28}{'s/pair':>9}{'time ×':>9}{'arithmetic ×':>14}{'activations MB':>16}")
    for case, result in figures.items():
        result["time_ratio"] = result["seconds"] / first["seconds"]
        result["arithmetic_ratio"] = result["flop"] / first["flop"]
        print(
            f"{case:28}{result['seconds']:9.3f}{result['time_ratio']:9.2f}{result['arithmetic_ratio']:14.2f}"
            f"{result['activations_mb']:16.0f}"
        )
    print(json.dumps(figures))


def measure(case: str, steps: int) -> dict[str, float]:
    """One case's figures."""
    command = [sys.executable, __file__, "--case", case, "--steps", str(steps)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return figures


def run(case: dict[str, int], steps: int) -> dict[str, float]:
    """Seconds and useful FLOP per pair, and the memory of activations in MB."""
    import product  # lazy, as below: the parent process needs no torch
    import torch

    from dpo_core.config.recipe import ModelSettings, TrainSettings
    from dpo_core.train.batching.packing import branches, build
    from dpo_core.train.loop import steps as train_steps
    from dpo_core.train.runtime.flops import ModelSizes, peak_memory

    shape = {
        "vocab_size": case["vocabulary"],
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
    train = TrainSettings(batch_size=case["pairs"], learning_rate=1e-5, token_budget=2048, reference_mode="cached")
    with tempfile.TemporaryDirectory() as directory:
        setup = product.Setup(shape, ModelSettings(lora_rank=0), train)
        session, _ = product.benchmark_session(Path(directory), setup, random_pairs(case, steps))
        policy, rows, before = session.run.policy, session.run.rows, peak_memory()
        history = [step.values["batch_time"] for step in train_steps(session.run)]
        pairs = [rows[index] for index in range(case["pairs"])]
    microbatches = [build("tree", [branches(pair)], torch.device("cpu")) for pair in pairs]
    parameters = sum(p.numel() for p in policy.parameters())
    beyond = peak_memory() - before - parameters * (BYTES_A_PARAMETER - 4)  # the weights existed before
    return {
        "seconds": min(history[1:]) / case["pairs"],
        "flop": ModelSizes.of(policy).cost(pairs, microbatches).useful / case["pairs"],
        "activations_mb": beyond / 1e6,
    }


def random_pairs(case: dict[str, int], steps: int) -> list[dict[str, list[int]]]:
    """Pairs of equal lengths, enough for the steps."""
    rng = np.random.default_rng(0)
    lengths = {"prompt_ids": case["prompt"], "chosen_ids": case["completion"], "rejected_ids": case["completion"]}
    return [
        {name: rng.integers(10, case["vocabulary"], length).tolist() for name, length in lengths.items()}
        for _ in range(case["pairs"] * steps)
    ]


if __name__ == "__main__":
    main()
