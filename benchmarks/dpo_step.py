"""Speed and memory of DPO training, ours and TRL's, on the same weights, pairs and order, side by side in one run.

    python benchmarks/dpo_step.py [--shape 40m|1b|8b] [--lengths hh|ultrafeedback|8k] [--lora-rank 0]
                                  [--batch-size 8] [--steps 6] [--only NAME …]

Every contender runs in a process of its own, one after the other: its peak memory is its own, and the first step, which
warms up, is not timed. Without a GPU the 40M shape takes some minutes. Prints a table and, last, one JSON line.
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
# name: (whose, precision, reference, pairs of a TRL microbatch; 0: the batch at once)
ON_CPU: dict[str, tuple[str, str, str, int]] = {
    "trl fp32": ("trl", "fp32", "step", 0),
    "trl fp32, microbatch 2": ("trl", "fp32", "step", 2),
    "trl fp32, microbatch 1": ("trl", "fp32", "step", 1),
    "ours fp32": ("ours", "fp32", "scored", 0),
    "trl bf16": ("trl", "bf16", "step", 0),
    "trl bf16, precomputed": ("trl", "bf16", "cached", 0),
    "trl bf16, precomputed, microbatch 2": ("trl", "bf16", "cached", 2),
    "trl bf16, precomputed, microbatch 1": ("trl", "bf16", "cached", 1),
    "ours bf16, cached": ("ours", "bf16", "cached", 0),
    "ours bf16, on the fly": ("ours", "bf16", "step", 0),
}
ON_GPU: dict[str, tuple[str, str, str, int]] = {
    "trl bf16, microbatch 8": ("trl", "bf16", "step", 8),
    "trl bf16, precomputed, microbatch 8": ("trl", "bf16", "cached", 8),
    "trl bf16, precomputed, microbatch 16": ("trl", "bf16", "cached", 16),
    "trl bf16, precomputed, microbatch 4, Liger": ("trl liger", "bf16", "cached", 4),
    "trl bf16, precomputed, microbatch 4": ("trl", "bf16", "cached", 4),
    "trl bf16, precomputed, microbatch 2": ("trl", "bf16", "cached", 2),
    "ours bf16, cached": ("ours", "bf16", "cached", 0),
    "ours bf16, on the fly": ("ours", "bf16", "step", 0),
}
CONTENDERS = ON_GPU if Path("/dev/nvidia0").exists() else ON_CPU


def main() -> None:
    """Run every contender in a process of its own and compare."""
    options = parse()
    if options.contender:
        from contender import run  # this folder's, which imports torch

        told = json.loads((Path(options.place) / "options.json").read_text())
        print(json.dumps(run(told | contender(options.contender) | {"place": options.place})))
        return
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), options)
        results = {name: measure(name, place) for name in chosen(options)}
    report(results, options)


def chosen(options: argparse.Namespace) -> list[str]:
    """The contenders that are asked for, all by default."""
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
    parser.add_argument("--token-budget", default="auto", help="of ours")
    parser.add_argument("--recompute", action="store_true", help="ours computes activations again")
    parser.add_argument("--compile-model", choices=("auto", "true", "false"), default="auto", help="of ours")
    parser.add_argument("--only", nargs="*", help="contenders to run, by name")
    parser.add_argument("--ours", action="store_true", help="run ours bf16, cached, beside what --trl says")
    parser.add_argument(
        "--trl", type=int, nargs="*", default=[], help="run TRL bf16, precomputed, with these microbatches"
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    return parser.parse_args()


def contender(name: str) -> dict[str, Any]:
    """A contender's settings by name."""
    return dict(zip(("whose", "precision", "reference", "micro"), CONTENDERS[name], strict=True))


def prepare(place: Path, options: argparse.Namespace) -> None:
    """Draw the pairs that every contender trains on; weights are drawn from a seed by each."""
    rng = np.random.default_rng(0)
    count = options.batch_size * options.steps
    vocabulary = SHAPES[options.shape]["vocab_size"]

    def tokens(part: str) -> list[list[int]]:
        lengths = np.interp(rng.random(count), QUANTILES, LENGTHS[options.lengths][part]).astype(int)
        return [rng.integers(10, vocabulary, length).tolist() for length in lengths]

    columns = {f"{part}_ids": tokens(part) for part in ("prompt", "chosen", "rejected")}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (place / "pairs.json").write_text(json.dumps(rows))
    (place / "options.json").write_text(json.dumps(vars(options) | {"config": SHAPES[options.shape]}))


def measure(name: str, place: str) -> dict[str, Any] | None:
    """One contender's figures, None if it failed (as for want of memory)."""
    command = [sys.executable, __file__, "--contender", name, "--place", place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: failed:\n{done.stderr.strip()[-2000:]}", flush=True)
        return None
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name}: {figures['pairs_per_s']:.3f} pairs/s, {figures['peak_gb']:.2f} GB", flush=True)
    return figures


def report(results: dict[str, dict[str, Any] | None], options: argparse.Namespace) -> None:
    """The table, and the same as one JSON line."""
    found = {name: figures for name, figures in results.items() if figures}
    print(f"\n{'':38}{'pairs/s':>9}{'peak GB':>9}{'MFU':>7}  loss of each step")
    for name, told in found.items():
        losses = " ".join(f"{loss:.6f}" for loss in told["losses"])
        share = f"{told['mfu_useful']:.2f}" if told.get("mfu_useful") else ""
        print(f"{name:38}{told['pairs_per_s']:9.3f}{told['peak_gb']:9.2f}{share:>7}  {losses}")
    summary = compare(found)
    for line, value in summary.items():
        print(f"{line}: {value:.3g}")
    print(json.dumps({"options": vars(options), "contenders": found, "summary": summary}))


def compare(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours beside TRL's of the same precision: with the whole batch at once, and with its best microbatch."""
    summary: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        theirs = {name: told for name, told in found.items() if name.startswith("trl") and precision in name}
        if not theirs:
            continue
        rivals = {
            "TRL's best with the batch at once": fastest([t for n, t in theirs.items() if "microbatch" not in n]),
            "TRL's best of all": fastest(list(theirs.values())),
        }
        for name, told in found.items():
            if name.startswith("ours") and precision in name:
                for rival, best in rivals.items():
                    if best:
                        summary[f"{name}: pairs/s, times {rival}"] = told["pairs_per_s"] / best["pairs_per_s"]
                        summary[f"{name}: memory, share of {rival}"] = told["peak_gb"] / best["peak_gb"]
                first = next(iter(theirs.values()))
                apart = max(abs(a - b) for a, b in zip(told["losses"], first["losses"], strict=True))
                summary[f"{name}: furthest loss apart"] = apart
    return summary


def fastest(contenders: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The one with most pairs a second, if there is any."""
    return max(contenders, key=lambda told: float(told["pairs_per_s"]), default=None)


if __name__ == "__main__":
    main()
