"""Memory and speed of the acquire stage as the number of rows grows: the HH file once, 10 times and 100 times.

python benchmarks/data_memory.py HH.jsonl.gz [times ...]

Each size runs in a process of its own, from a JSONL file and from a directory of JSONL as on the hub (``datasets``
maps it). Repeated rows get another first word, so that none is a duplicate. ``anonymous`` is the memory that the
process holds itself, at its highest, less what it held before the first row; ``resident`` counts mapped files too,
which the system takes back when it needs the room.
"""

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
EVERY_S = 0.005
FIRST_TURN = re.compile(r"^\n\nHuman:")


def repeat(source: Path, target: Path, times: int) -> int:
    """Write the rows of ``source`` so many times, each time with another first word; returns how many."""
    with gzip.open(source, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w") as stream:
        for turn in range(times):
            for row in rows:
                varied = {side: FIRST_TURN.sub(f"\n\nHuman: ({turn})", text) for side, text in row.items()}
                stream.write(json.dumps(varied) + "\n")
    return times * len(rows)


def memory() -> dict[str, float]:
    """Anonymous and resident memory of this process, in MiB."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"anonymous": int(told["RssAnon"].split()[0]) / 1024, "resident": int(told["VmRSS"].split()[0]) / 1024}


class Watch(threading.Thread):
    """The highest memory of this process while it is watched."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.done = memory(), False

    def run(self) -> None:
        while not self.done:
            now = memory()
            self.highest = {name: max(value, now[name]) for name, value in self.highest.items()}
            time.sleep(EVERY_S)


def measure(dataset: str, path: Path) -> dict[str, float]:
    """One acquire stage in this process, everything imported before."""
    import datasets

    from dpo_core.cache.store import Store
    from dpo_core.config.recipe import DataSettings
    from dpo_core.data import acquire
    from dpo_core.stages.acquire import AcquireRequest

    datasets.disable_progress_bars()
    data = DataSettings(dataset=str(path)) if dataset == "file" else DataSettings(dataset="hhh", data_path=path)
    before, watch = memory(), Watch()
    watch.start()
    start = time.perf_counter()
    with Store(path.parent / "store").write("acquire", "key") as draft:
        acquire.run(AcquireRequest(data=data, source=acquire.pin_source(data), seed=0), draft)
    seconds = time.perf_counter() - start
    watch.done = True
    grown = {name: value - before[name] for name, value in watch.highest.items()}
    return {"seconds": seconds, **grown}


def in_process(kind: str, path: Path, cache: Path) -> dict[str, float]:
    """``measure`` in a process of its own."""
    words = [sys.executable, __file__, "--measure", kind, str(path)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parent.parent)}
    told = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(told.stdout.splitlines()[-1]))


def main(source: Path, times: tuple[int, ...]) -> None:
    results = []
    print("MiB above the start")
    print(f"{'source':>10} {'rows':>8} {'seconds':>8} {'rows/s':>8} {'anonymous':>10} {'resident':>9}")
    for kind in ("file", "directory"):
        for count in times:
            with tempfile.TemporaryDirectory() as temporary:
                place = Path(temporary)
                path = place / "pairs.jsonl" if kind == "file" else place / "hh"
                rows = repeat(source, path if kind == "file" else path / "train.jsonl", count)
                if kind == "directory":
                    repeat(source, path / "test.jsonl", 1)
                found = in_process(kind, path, place / "cache")
            results.append({"source": kind, "rows": rows, **{name: round(value, 2) for name, value in found.items()}})
            print(
                f"{kind:>10} {rows:>8} {found['seconds']:>8.2f} {rows / found['seconds']:>8.0f}"
                f" {found['anonymous']:>10.1f} {found['resident']:>9.1f}",
                flush=True,
            )
    print(json.dumps({"benchmark": "data_memory", "results": results}))


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main(Path(sys.argv[1]), tuple(int(word) for word in sys.argv[2:]) or TIMES)
