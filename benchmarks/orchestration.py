"""What Prefect and MLflow cost: the same small run by ``dpo run`` and by ``python -m dpo_core run``, side by side.

    python benchmarks/orchestration.py [--runs 3] [--ways plain,servers,alone] [key=value ...]

- plain: ``python -m dpo_core run``: the stages, nothing else.
- servers: ``dpo run`` against a Prefect and an MLflow server that run already (Postgres, logins: python -m
  deployments.servers.local_servers); registers a version and decides about it, which plain does not.
- alone: ``dpo run`` without servers: brings its own Prefect, and MLflow is sqlite.

Every run starts in an empty directory, so that no stage is cached, and the ways take turns. ``key=value`` are settings
of the run (more steps, a larger model) over those of the built-in demo in miniature. The aim, for servers: the time of
plain + 5 s + 1 %. Prints a table and, last, one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
WAYS = ("plain", "servers", "alone")
SMALL = [
    *("dataset=demo", "model_name=demo", "demo_pairs=200", "lora_rank=0", "renderer_name=role_colon"),
    *("sft_steps=20", "batch_size=8", "max_steps=20", "ifeval_limit=16", "max_new_tokens=32", "num_samples=2"),
]
FIXED_S, SHARE = 5.0, 0.01


def main() -> None:
    arguments = parse()
    words = [*SMALL, *arguments.words]
    times: dict[str, list[float]] = {way: [] for way in arguments.ways}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpo-bench-")))
        place.chmod(0o711)  # Postgres may run as another user
        found = servers(stack, place) if "servers" in arguments.ways else {}
        for number in range(arguments.runs):
            for way in arguments.ways:
                environment = clean() | (found if way == "servers" else {"PREFECT_HOME": str(place / "prefect")})
                # Another seed in each turn: servers that know the version already would not register it again.
                seconds = measure(way, place / f"{way}-{number}", [f"seed={number}", *words], environment)
                times[way].append(seconds)
                print(f"run {number + 1}, {way}: {seconds:.1f} s", flush=True)
    show(times, words)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("words", nargs="*", metavar="key=value")
    return parser.parse_args()


def servers(stack: ExitStack, place: Path) -> Mapping[str, str]:
    """Both servers, until the end; the environment in which a client finds them."""
    from deployments.servers.local_servers import Ports, running

    return stack.enter_context(running(place / "servers", Ports(0, 0))).environment


def clean() -> dict[str, str]:
    """This environment without what would choose settings or servers."""
    ours = ("DPO_", "MLFLOW_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def measure(way: str, place: Path, words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds from the command to its end, in an empty directory."""
    place.mkdir()
    command = ["-m", "dpo_core", "run"] if way == "plain" else ["-m", "flows"]
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command, *words],
        cwd=place,
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{way}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def show(times: Mapping[str, list[float]], words: Sequence[str]) -> None:
    median = {way: statistics.median(found) for way, found in times.items()}
    plain = median.get("plain")
    print(f"\n{' '.join(words)}\n\n| way | median s | fastest s | over plain, s |\n|---|---|---|---|")
    for way, found in times.items():
        over = f"{median[way] - plain:+.1f}" if plain is not None and way != "plain" else ""
        print(f"| {way} | {median[way]:.1f} | {min(found):.1f} | {over} |")
    told: dict[str, object] = {"benchmark": "orchestration", "seconds": times, "median": median}
    if plain is not None and "servers" in median:
        over, aim = median["servers"] - plain, FIXED_S + SHARE * plain
        told |= {"overhead_s": round(over, 2), "aim_s": round(aim, 2), "met": over <= aim}
        print(f"\nservers cost {over:.1f} s; the aim is {aim:.1f} s: {'met' if over <= aim else 'missed'}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
