"""Speed and memory of DPO training, ours and TRL's, on the same weights, pairs and order, side by side in one run.

    python benchmarks/dpo_step.py [--shape 40m|1b|8b] [--lengths hh|ultrafeedback|8k] [--lora-rank 0]
                                  [--batch-size 8] [--steps 6] [--only NAME …]

Every contender runs in its own process, one after the other. The first step is a warm-up and is not timed. Without a
GPU the 40M shape takes some minutes. Prints a table and, last, one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

# Quantiles of token lengths with a 50k BPE: of 2,307 pairs of HH (harmless-base), and of 1,000 of UltraFeedback.
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
LENGTHS = {
    "hh": {
        "prompt": (8, 16, 31, 96, 168, 349, 547, 845),
        "chosen": (4, 7, 16, 29, 55, 121, 196, 282),
        "rejected": (4, 7, 18, 37, 68, 146, 259, 572),
    },
    "ultrafeedback": {
        "prompt": (6, 9, 22, 81, 224, 683, 1177, 2070),
        "chosen": (4, 8, 60, 215, 468, 850, 1109, 2278),
        "rejected": (4, 11, 64, 193, 400, 741, 1056, 1615),
    },
    "8k": {part: (2730,) * 8 for part in ("prompt", "chosen", "rejected")},
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 2_000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "40m": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
# name: (trainer, precision, reference, pairs of a TRL microbatch; 0 for the whole batch)
ON_CPU: dict[str, tuple[str, str, str, int]] = {
    "trl fp32": ("trl", "fp32", "step", 0),
    "trl fp32, microbatch 2": ("trl", "fp32", "step", 2),
    "trl fp32, microbatch 1": ("trl", "fp32", "step", 1),
    "ours fp32": ("dpo-flows", "fp32", "scored", 0),
    "trl bf16": ("trl", "bf16", "step", 0),
    "trl bf16, precomputed": ("trl", "bf16", "cached", 0),
    "trl bf16, precomputed, microbatch 2": ("trl", "bf16", "cached", 2),
    "trl bf16, precomputed, microbatch 1": ("trl", "bf16", "cached", 1),
    "ours bf16, cached": ("dpo-flows", "bf16", "cached", 0),
    "ours bf16, on the fly": ("dpo-flows", "bf16", "step", 0),
}
ON_GPU: dict[str, tuple[str, str, str, int]] = {
    "trl bf16, microbatch 8": ("trl", "bf16", "step", 8),
    "trl bf16, precomputed, microbatch 8": ("trl", "bf16", "cached", 8),
    "trl bf16, precomputed, microbatch 16": ("trl", "bf16", "cached", 16),
    "trl bf16, precomputed, microbatch 4, Liger": ("trl liger", "bf16", "cached", 4),
    "trl bf16, precomputed, microbatch 4": ("trl", "bf16", "cached", 4),
    "trl bf16, precomputed, microbatch 2": ("trl", "bf16", "cached", 2),
    "ours bf16, cached": ("dpo-flows", "bf16", "cached", 0),
    "ours bf16, on the fly": ("dpo-flows", "bf16", "step", 0),
}
CONTENDERS = ON_GPU if Path("/dev/nvidia0").exists() else ON_CPU


def main() -> None:
    """Run every contender in its own process and compare them."""
    options = parse()
    if options.contender:
        from contender import run  # this folder's, which imports torch

        figures = json.loads((Path(options.directory) / "options.json").read_text())
        print(json.dumps(run(figures | contender(options.contender) | {"directory": options.directory})))
        return
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), options)
        results = {name: measure(name, directory) for name in selected(options)}
    report(results, options)


def selected(options: argparse.Namespace) -> list[str]:
    """Names of the contenders to run, by default all."""
    names = [*(options.only or []), *(["ours bf16, cached"] if options.ours else [])]
    names += [f"trl bf16, precomputed, microbatch {size}" for size in options.trl]
    return names or list(CONTENDERS)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="40m")
    parser.add_argument("--lengths", choices=LENGTHS, default="hh")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--token-budget", default="auto", help="of dpo-flows")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing for dpo-flows")
    parser.add_argument("--compile-model", choices=("auto", "true", "false"), default="auto", help="of dpo-flows")
    parser.add_argument("--only", nargs="*", help="contenders to run, by name")
    parser.add_argument("--ours", action="store_true", help="run 'ours bf16, cached', beside the contenders of --trl")
    parser.add_argument(
        "--trl", type=int, nargs="*", default=[], help="run TRL bf16, precomputed, with these microbatches"
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    return parser.parse_args()


def contender(name: str) -> dict[str, Any]:
    """A contender's settings by name."""
    return dict(zip(("trainer", "precision", "reference", "microbatch"), CONTENDERS[name], strict=True))


def prepare(directory: Path, options: argparse.Namespace) -> None:
    """Write the pairs that every contender trains on. Each contender draws the same weights from a seed."""
    rng = np.random.default_rng(0)
    count = options.batch_size * options.steps
    vocabulary = SHAPES[options.shape]["vocab_size"]

    def tokens(part: str) -> list[list[int]]:
        lengths = np.interp(rng.random(count), QUANTILES, LENGTHS[options.lengths][part]).astype(int)
        return [rng.integers(10, vocabulary, length).tolist() for length in lengths]

    columns = {f"{part}_ids": tokens(part) for part in ("prompt", "chosen", "rejected")}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (directory / "pairs.json").write_text(json.dumps(rows))
    (directory / "options.json").write_text(json.dumps(vars(options) | {"config": SHAPES[options.shape]}))


def measure(name: str, directory: str) -> dict[str, Any] | None:
    """One contender's figures, None if it failed (for example out of memory)."""
    command = [sys.executable, __file__, "--contender", name, "--directory", directory]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        print(f"{name}: failed:\n{process.stderr.strip()[-2000:]}", flush=True)
        return None
    figures: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    print(f"{name}: {figures['pairs_per_s']:.3f} pairs/s, {figures['peak_gb']:.2f} GB", flush=True)
    return figures


def report(results: dict[str, dict[str, Any] | None], options: argparse.Namespace) -> None:
    """Print the table, then the same figures as one JSON line."""
    finished = {name: figures for name, figures in results.items() if figures}
    print(f"\n{'':38}{'pairs/s':>9}{'peak GB':>9}{'MFU':>7}  loss of each step")
    for name, figures in finished.items():
        losses = " ".join(f"{loss:.6f}" for loss in figures["losses"])
        share = f"{figures['mfu_useful']:.2f}" if figures.get("mfu_useful") else ""
        print(f"{name:38}{figures['pairs_per_s']:9.3f}{figures['peak_gb']:9.2f}{share:>7}  {losses}")
    summary = compare(finished)
    for line, value in summary.items():
        print(f"{line}: {value:.3g}")
    print(json.dumps({"options": vars(options), "contenders": finished, "summary": summary}))


def compare(finished: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ratios to TRL of the same precision, with the whole batch and with its best microbatch."""
    summary: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        theirs = {name: figures for name, figures in finished.items() if name.startswith("trl") and precision in name}
        if not theirs:
            continue
        rivals = {
            "TRL's best with the batch at once": fastest(
                [figures for name, figures in theirs.items() if "microbatch" not in name]
            ),
            "TRL's best of all": fastest(list(theirs.values())),
        }
        for name, figures in finished.items():
            if name.startswith("ours") and precision in name:
                for rival, best in rivals.items():
                    if best:
                        summary[f"{name}: pairs/s, times {rival}"] = figures["pairs_per_s"] / best["pairs_per_s"]
                        summary[f"{name}: memory, share of {rival}"] = figures["peak_gb"] / best["peak_gb"]
                first = next(iter(theirs.values()))
                apart = max(abs(a - b) for a, b in zip(figures["losses"], first["losses"], strict=True))
                summary[f"{name}: furthest loss apart"] = apart
    return summary


def fastest(contenders: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The contender with the most pairs per second, None if there is none."""
    return max(contenders, key=lambda figures: float(figures["pairs_per_s"]), default=None)


if __name__ == "__main__":
    main()
