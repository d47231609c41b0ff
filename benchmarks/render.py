"""Rendering and tokenisation: pairs a second and peak memory, ours beside TRL's own preprocessing of the same rows.

    python benchmarks/render.py TOKENIZER_DIR [HH_ROWS.jsonl.gz] [--repeats 1,10,100] [--runs 2]

HH_ROWS has the columns ``chosen`` and ``rejected`` (Human/Assistant transcripts); without it rows of that shape are
made up. Every measurement is a process of its own. Ours goes from transcripts to a fingerprinted Arrow file (parse,
render with role_colon, tokenise, truncate, count, write); TRL's is DPOTrainer's dataset preparation, from the same
transcripts to its cached Arrow file. Both start with the rows in Arrow files, and end when the token ids are on disk;
imports and loading the tokenizer are not counted.
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

WAYS = ("dpo-flows", "dpo-flows, one thread", "TRL, num_proc=1", "TRL, num_proc=2")
WORDS = ["the", "a", "of", "people", "should", "never", "always", "story", "help", "water", "answer", "question"]


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    with tempfile.TemporaryDirectory(prefix="dpo-bench-") as place:
        results = [best(arguments, way, repeats, Path(place)) for repeats in arguments.repeats for way in WAYS]
    show(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("rows", nargs="?")
    parser.add_argument("--repeats", type=lambda text: [int(part) for part in text.split(",")], default=[1, 10, 100])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def best(arguments: argparse.Namespace, way: str, repeats: int, place: Path) -> dict[str, Any]:
    """The fastest of a few runs, each in a fresh process; of their memory the most."""
    source = place / f"rows-{repeats}"
    if not source.exists():
        write_rows(arguments.rows, repeats, source)
    found = []
    for _ in range(arguments.runs if repeats < 100 else 1):
        words = [sys.executable, __file__, "--one", way, arguments.tokenizer, str(source), str(place)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    fastest = max(found, key=lambda one: one["pairs_per_s"])
    return {"way": way, "repeats": repeats, **fastest, "peak_mb": max(one["peak_mb"] for one in found)}


def write_rows(path: str | None, repeats: int, target: Path) -> None:
    """The rows, repeated, as an Arrow file that datasets maps: neither side holds them in memory."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    def rows() -> Iterator[dict[str, str]]:
        for _ in range(repeats):
            yield from (read_rows(path) if path else made_up(1200))

    Dataset.from_generator(rows, cache_dir=str(target.with_suffix(".cache"))).save_to_disk(str(target))


def read_rows(path: str) -> Iterator[dict[str, str]]:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield {name: json.loads(line)[name] for name in ("chosen", "rejected")}


def made_up(count: int) -> Iterator[dict[str, str]]:
    """Transcripts of HH's lengths (§7: prompts of 124 tokens on average, answers of 47)."""
    rng = random.Random(0)

    def said(mean: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(1 + int(rng.expovariate(1 / mean))))

    for _ in range(count):
        turns = rng.randint(0, 2)
        before = "".join(f"\n\nHuman: {said(30)}\n\nAssistant: {said(40)}" for _ in range(turns))
        prompt = f"{before}\n\nHuman: {said(40)}\n\nAssistant: "
        yield {"chosen": prompt + said(42), "rejected": prompt + said(52)}


def measure(way: str, tokenizer: str, source: str, place: str) -> dict[str, Any]:
    """Pairs a second of one way of doing it, and the process tree's peak memory."""
    work = Path(tempfile.mkdtemp(dir=place))
    run = ours(way, tokenizer, source, work) if way.startswith("dpo") else trl(way, tokenizer, source, work)
    return run | {"peak_mb": round(peak_kb() / 1024)}


def peak_kb() -> int:
    """The peak of this process; of a process with children, the largest child's on top."""
    mine, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine + children


def ours(way: str, tokenizer: str, source: str, work: Path) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if "one thread" in way else "true"
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
    write_pairs(work / "pairs.arrow", (pair for pair in parsed if isinstance(pair, Preference)))
    between = time.perf_counter()
    write_split(work / "rendered.arrow", split.render(work / "pairs.arrow"))
    fingerprint.of_files([work / "rendered.arrow"], work)
    ended = time.perf_counter()
    return {
        "pairs_per_s": round(pairs / (ended - started)),
        "rendering_alone_pairs_per_s": round(split.kept / (ended - between)),
        "pairs": pairs,
        "kept": split.kept,
    }


def read_arrow(source: Path) -> Iterator[dict[str, str]]:
    """The rows of a saved dataset, a batch in memory at a time."""
    import pyarrow as pa

    for path in sorted(source.glob("data-*.arrow")):
        with pa.OSFile(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield from batch.to_pylist()


def trl(way: str, tokenizer: str, source: str, work: Path) -> dict[str, Any]:
    os.environ["HF_DATASETS_CACHE"] = str(work)
    from types import SimpleNamespace

    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    # A second run would find the first one's output.
    datasets.disable_caching()
    dataset = datasets.load_from_disk(source)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    # num_proc=1 would start a process for nothing: None is faster, and TRL's default.
    processes = {"1": None, "2": 2}[way[-1]]
    options = DPOConfig(output_dir=str(work), max_length=1024, dataset_num_proc=processes, report_to=[], use_cpu=True)
    # The trainer's own method; all that it needs of a trainer is the tokenizer.
    trainer = SimpleNamespace(_tokenizer=loaded)
    started = time.perf_counter()
    prepared = DPOTrainer._prepare_dataset(trainer, dataset, loaded, options, "train")
    ended = time.perf_counter()
    return {"pairs_per_s": round(len(dataset) / (ended - started)), "pairs": len(dataset), "kept": len(prepared)}


def show(results: list[dict[str, Any]]) -> None:
    """The table, the comparison, and one JSON line with the same figures."""
    print(f"{'':24} {'pairs':>8} {'pairs/s':>8} {'rendering alone':>16} {'peak MB':>8}")
    for one in results:
        alone = one.get("rendering_alone_pairs_per_s", "")
        print(f"{one['way']:24} {one['pairs']:>8,} {one['pairs_per_s']:>8,} {alone:>16} {one['peak_mb']:>8,}")
    speedups = {}
    for repeats in sorted({one["repeats"] for one in results}):
        mine = max(one["pairs_per_s"] for one in results if one["repeats"] == repeats and one["way"].startswith("dpo"))
        theirs = max(
            one["pairs_per_s"] for one in results if one["repeats"] == repeats and one["way"].startswith("TRL")
        )
        speedups[repeats] = round(mine / theirs, 2)
        print(f"at {repeats} times the rows, {speedups[repeats]} times TRL's best")
    print(json.dumps({"results": results, "times_trls_best": speedups}))


if __name__ == "__main__":
    main()
