"""Fault injection: ``python -m tests.faults --injections 200 [--seed 0]``.

Prints a table of the runs that survived and, last, the same as one JSON line. The exit code is 1 if a run did not.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process with threads cannot be forked safely

# Everything that a stage imports, so that the forked processes need not import it.
import dpo_core.data.acquire
import dpo_core.evaluate.evaluate
import dpo_core.render.render
import dpo_core.train.reference
import dpo_core.train.train  # noqa: F401
from tests.conftest import SHARED
from tests.faults.arena import Arena
from tests.faults.trials import schedule


def main() -> int:
    """Inject all kinds of faults, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only kinds of faults whose name contains this")
    options = parser.parse_args()
    counts, failures = {}, []
    with tempfile.TemporaryDirectory(prefix="dpo-faults-") as root:
        arena = Arena(Path(root), SHARED / "models" / "stories260K")
        arena.build()
        print(f"{'fault':40}{'injected':>9}{'survived':>9}{'seconds':>9}", flush=True)
        for name, trial, count in schedule(options.injections):
            if options.only and options.only not in name:
                continue
            started, survived = time.monotonic(), 0
            for number in range(count):
                chance = random.Random(f"{options.seed} {name} {number}")
                try:
                    trial(arena, chance)
                    survived += 1
                except AssertionError as error:
                    failures.append(f"{name} {number}: {error}")
            seconds = time.monotonic() - started
            counts[name] = {"injected": count, "survived": survived}
            print(f"{name:40}{count:9}{survived:9}{seconds:9.0f}", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    print(json.dumps(counts))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
