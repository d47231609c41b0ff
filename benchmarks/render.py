"""Speed and peak memory of rendering and tokenization, beside TRL's preprocessing of the same rows.

    python benchmarks/render.py TOKENIZER_DIR [HH_ROWS.jsonl.gz] [--repeats 1,10,100] [--runs 2]

HH_ROWS has the columns ``chosen`` and ``rejected`` (Human/Assistant transcripts); without it random rows of
that shape are generated. Every measurement runs in its own process. dpo-flows goes from transcripts to a fingerprinted
Arrow file (parse, render with role_colon, tokenize, truncate, count, write); TRL is DPOTrainer's dataset preparation,
from the same transcripts to its cached Arrow file. Both start with the rows in Arrow files, and end when the token ids
are on disk; imports and loading the tokenizer are not timed.
"""

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTENDERS = ("dpo-flows", "dpo-flows, one thread", "TRL, num_proc=1", "TRL, num_proc=2")
WORDS = ["the", "a", "of", "people", "should", "never", "always", "story", "help", "water", "answer", "question"]


def main() -> None:
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="dpo-bench-") as directory:
        results = [
            measure_best(arguments, contender, repeats, Path(directory))
            for repeats in arguments.repeats
            for contender in CONTENDERS
        ]
    report(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("rows", nargs="?")
    parser.add_argument("--repeats", type=lambda text: [int(part) for part in text.split(",")], default=[1, 10, 100])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_best(arguments: argparse.Namespace, contender: str, repeats: int, directory: Path) -> dict[str, Any]:
    """The figures of the fastest run, each in a new process, with the highest peak memory of all runs."""
    source = directory / f"rows-{repeats}"
    if not source.exists():
        write_rows(arguments.rows, repeats, source)
    results = []
    for _ in range(arguments.runs if repeats < 100 else 1):
        command = [sys.executable, __file__, "--measure", contender, arguments.tokenizer, str(source), str(directory)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            sys.exit(process.stderr)
        results.append(json.loads(process.stdout.splitlines()[-1]))
    fastest = max(results, key=lambda result: result["pairs_per_s"])
    return {
        "contender": contender,
        "repeats": repeats,
        **fastest,
        "peak_mb": max(result["peak_mb"] for result in results),
    }


def write_rows(path: str | None, repeats: int, target: Path) -> None:
    """Write the rows, repeated, as an Arrow file that is mapped: neither contender holds them in memory."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    def rows() -> Iterator[dict[str, str]]:
        for _ in range(repeats):
            yield from (read_rows(path) if path else random_transcripts(1200))

    Dataset.from_generator(rows, cache_dir=str(target.with_suffix(".cache"))).save_to_disk(str(target))


def read_rows(path: str) -> Iterator[dict[str, str]]:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield {name: json.loads(line)[name] for name in ("chosen", "rejected")}


def random_transcripts(count: int) -> Iterator[dict[str, str]]:
    """Random transcripts of HH's lengths: prompts of 124 tokens on average, responses of 47."""
    rng = random.Random(0)

    def sentence(mean: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(1 + int(rng.expovariate(1 / mean))))

    for _ in range(count):
        turns = rng.randint(0, 2)
        history = "".join(f"\n\nHuman: {sentence(30)}\n\nAssistant: {sentence(40)}" for _ in range(turns))
        prompt = f"{history}\n\nHuman: {sentence(40)}\n\nAssistant: "
        yield {"chosen": prompt + sentence(42), "rejected": prompt + sentence(52)}


def measure(contender: str, tokenizer: str, source: str, directory: str) -> dict[str, Any]:
    """Pairs per second of one contender, and the peak memory of its process tree."""
    output = Path(tempfile.mkdtemp(dir=directory))
    run = (
        measure_dpo_flows(contender, tokenizer, source, output)
        if contender.startswith("dpo")
        else measure_trl(contender, tokenizer, source, output)
    )
    return run | {"peak_mb": round(peak_kb() / 1024)}


def peak_kb() -> int:
    """Peak memory of this process plus that of its largest child, in KiB."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own + children


def measure_dpo_flows(contender: str, tokenizer: str, source: str, output: Path) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if "one thread" in contender else "true"
    from dpo_core.cache import fingerprint
    from dpo_core.config.recipe import RenderSettings
    from dpo_core.data.datasets.hhh import convert
    from dpo_core.data.preference import Preference, write_pairs
    from dpo_core.render.registry import get_renderer
    from dpo_core.render.render import SplitRenderer
    from dpo_core.render.token_dataset import write_split
    from dpo_core.render.tokenizer import load_tokenizer
    from dpo_core.system.progress import Progress

    pairs = sum(1 for _ in read_arrow(Path(source)))  # pyarrow imports more at its first use
    renderer = get_renderer("role_colon", load_tokenizer(Path(tokenizer)))
    split = SplitRenderer(renderer, RenderSettings(max_length=1024), Progress("rendering", pairs, "pairs"))
    started = time.perf_counter()
    parsed = (convert(row, "") for row in read_arrow(Path(source)))
    write_pairs(output / "pairs.arrow", (pair for pair in parsed if isinstance(pair, Preference)))
    between = time.perf_counter()
    write_split(output / "rendered.arrow", split.render(output / "pairs.arrow"))
    fingerprint.of_files([output / "rendered.arrow"], output)
    ended = time.perf_counter()
    return {
        "pairs_per_s": round(pairs / (ended - started)),
        "rendering_alone_pairs_per_s": round(split.kept / (ended - between)),
        "pairs": pairs,
        "kept": split.kept,
    }


def read_arrow(source: Path) -> Iterator[dict[str, str]]:
    """The rows of a saved dataset, one batch in memory at a time."""
    import pyarrow as pa

    for path in sorted(source.glob("data-*.arrow")):
        with pa.OSFile(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield from batch.to_pylist()


def measure_trl(contender: str, tokenizer: str, source: str, output: Path) -> dict[str, Any]:
    os.environ["HF_DATASETS_CACHE"] = str(output)
    from types import SimpleNamespace

    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    # Otherwise a second run would reuse the output of the first.
    datasets.disable_caching()
    dataset = datasets.load_from_disk(source)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    # num_proc=1 would start a needless process: None is faster, and TRL's default.
    processes = {"1": None, "2": 2}[contender[-1]]
    options = DPOConfig(output_dir=str(output), max_length=1024, dataset_num_proc=processes, report_to=[], use_cpu=True)
    # The method needs only the tokenizer of its trainer.
    trainer = SimpleNamespace(_tokenizer=loaded)
    started = time.perf_counter()
    prepared = DPOTrainer._prepare_dataset(trainer, dataset, loaded, options, "train")
    ended = time.perf_counter()
    return {"pairs_per_s": round(len(dataset) / (ended - started)), "pairs": len(dataset), "kept": len(prepared)}


def report(results: list[dict[str, Any]]) -> None:
    """Print the table and the ratios to TRL, then the same figures as one JSON line."""
    print(f"{'':24} {'pairs':>8} {'pairs/s':>8} {'rendering alone':>16} {'peak MB':>8}")
    for result in results:
        alone = result.get("rendering_alone_pairs_per_s", "")
        print(
            f"{result['contender']:24} {result['pairs']:>8,} {result['pairs_per_s']:>8,} {alone:>16}"
            f" {result['peak_mb']:>8,}"
        )
    speedups = {}
    for repeats in sorted({result["repeats"] for result in results}):
        own = max(
            result["pairs_per_s"]
            for result in results
            if result["repeats"] == repeats and result["contender"].startswith("dpo")
        )
        trl = max(
            result["pairs_per_s"]
            for result in results
            if result["repeats"] == repeats and result["contender"].startswith("TRL")
        )
        speedups[repeats] = round(own / trl, 2)
        print(f"at {repeats} times the rows, {speedups[repeats]} times TRL's best")
    print(json.dumps({"results": results, "times_trls_best": speedups}))


if __name__ == "__main__":
    main()
