"""Memory and speed of the acquire stage as the number of rows grows: the HH file once, 10 times and 100 times.

python benchmarks/data_memory.py HH.jsonl.gz [times ...]

Each size runs in its own process, from a JSONL file and from a directory of JSONL files as on the hub (mapped by
``datasets``). Repeated rows get another first word, so that none is a duplicate. ``anonymous`` is the growth of the
process's own memory, at its peak, since before the first row; ``resident`` also counts mapped files, which the system
can take back.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TIMES = (1, 10, 100)
POLL_S = 0.005
FIRST_TURN = re.compile(r"^\n\nHuman:")


def repeat(source: Path, target: Path, times: int) -> int:
    """Write the rows of ``source`` ``times`` times, with another first word each time; returns their number."""
    with gzip.open(source, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w") as stream:
        for repetition in range(times):
            for row in rows:
                varied = {side: FIRST_TURN.sub(f"\n\nHuman: ({repetition})", text) for side, text in row.items()}
                stream.write(json.dumps(varied) + "\n")
    return times * len(rows)


def memory() -> dict[str, float]:
    """Anonymous and resident memory of this process, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"anonymous": int(status["RssAnon"].split()[0]) / 1024, "resident": int(status["VmRSS"].split()[0]) / 1024}


class MemoryWatch(threading.Thread):
    """Thread that records the peak memory of this process, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.done = memory(), False

    def run(self) -> None:
        while not self.done:
            now = memory()
            self.highest = {name: max(value, now[name]) for name, value in self.highest.items()}
            time.sleep(POLL_S)


def measure(dataset: str, path: Path) -> dict[str, float]:
    """Seconds and memory growth in MiB of one acquire stage in this process, after all imports."""
    import datasets

    from dpo_core.cache.store import Store
    from dpo_core.config.recipe import DataSettings
    from dpo_core.data import acquire
    from dpo_core.stages.acquire import AcquireRequest

    datasets.disable_progress_bars()
    data = DataSettings(dataset=str(path)) if dataset == "file" else DataSettings(dataset="hhh", data_path=path)
    before, memory_watch = memory(), MemoryWatch()
    memory_watch.start()
    start = time.perf_counter()
    with Store(path.parent / "store").write("acquire", "key") as draft:
        acquire.run(AcquireRequest(data=data, source=acquire.pin_source(data), seed=0), draft)
    seconds = time.perf_counter() - start
    memory_watch.done = True
    growth = {name: value - before[name] for name, value in memory_watch.highest.items()}
    return {"seconds": seconds, **growth}


def measure_in_process(kind: str, path: Path, cache: Path) -> dict[str, float]:
    """``measure`` in its own process."""
    command = [sys.executable, __file__, "--measure", kind, str(path)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def main(source: Path, times: tuple[int, ...]) -> None:
    results = []
    print("MiB above the start")
    print(f"{'source':>10} {'rows':>8} {'seconds':>8} {'rows/s':>8} {'anonymous':>10} {'resident':>9}")
    for kind in ("file", "directory"):
        for count in times:
            with tempfile.TemporaryDirectory() as temporary:
                directory = Path(temporary)
                path = directory / "pairs.jsonl" if kind == "file" else directory / "hh"
                rows = repeat(source, path if kind == "file" else path / "train.jsonl", count)
                if kind == "directory":
                    repeat(source, path / "test.jsonl", 1)
                figures = measure_in_process(kind, path, directory / "cache")
            results.append({"source": kind, "rows": rows, **{name: round(value, 2) for name, value in figures.items()}})
            print(
                f"{kind:>10} {rows:>8} {figures['seconds']:>8.2f} {rows / figures['seconds']:>8.0f}"
                f" {figures['anonymous']:>10.1f} {figures['resident']:>9.1f}",
                flush=True,
            )
    print(json.dumps({"benchmark": "data_memory", "results": results}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="HH.jsonl.gz")
    parser.add_argument("times", type=int, nargs="*", help=f"repetitions of the file (default: {TIMES})")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
    elif options.source:
        main(options.source, tuple(options.times) or TIMES)
    else:
        parser.error("name a file of HH's pairs, such as HH.jsonl.gz")
