"""Overhead of Prefect and MLflow: the same small run by ``dpo run`` and by ``python -m dpo_core run``.

    python benchmarks/orchestration.py [--runs 3] [--ways plain,servers,alone] [key=value ...]

- plain: ``python -m dpo_core run``: the stages, nothing else.
- servers: ``dpo run`` against a Prefect and an MLflow server that run already (Postgres, logins: python -m
  deployments.servers); registers and promotes a version, which plain does not.
- alone: ``dpo run`` without servers: Prefect runs in the process, and MLflow's store is sqlite.

Every run starts in an empty directory, so that no stage is cached, and the three alternate. ``key=value`` are settings
of the run (more steps, a larger model); they override those of a small demo run. The target for servers is the time of
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
VARIANTS = ("plain", "servers", "alone")
SMALL_RUN = [
    *("dataset=demo", "model_name=demo", "demo_pairs=200", "lora_rank=0", "renderer_name=role_colon"),
    *("sft_steps=20", "batch_size=8", "max_steps=20", "ifeval_limit=16", "max_new_tokens=32", "num_samples=2"),
]
FIXED_S, SHARE = 5.0, 0.01


def main() -> None:
    arguments = parse()
    words = [*SMALL_RUN, *arguments.words]
    times: dict[str, list[float]] = {variant: [] for variant in arguments.ways}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpo-bench-")))
        directory.chmod(0o711)  # Postgres may run as another user
        server_environment = servers(stack, directory) if "servers" in arguments.ways else {}
        for number in range(arguments.runs):
            for variant in arguments.ways:
                environment = clean() | (
                    server_environment if variant == "servers" else {"PREFECT_HOME": str(directory / "prefect")}
                )
                # Another seed in each round: the servers would not register the same version again.
                seconds = measure(variant, directory / f"{variant}-{number}", [f"seed={number}", *words], environment)
                times[variant].append(seconds)
                print(f"run {number + 1}, {variant}: {seconds:.1f} s", flush=True)
    report(times, words)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("words", nargs="*", metavar="key=value")
    return parser.parse_args()


def servers(stack: ExitStack, directory: Path) -> Mapping[str, str]:
    """Start both servers until ``stack`` closes; returns the environment with which clients reach them."""
    from deployments.servers.local_servers import Ports, running

    return stack.enter_context(running(directory / "servers", Ports(0, 0))).environment


def clean() -> dict[str, str]:
    """This process's environment without settings and server addresses."""
    prefixes = ("DPO_", "MLFLOW_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def measure(variant: str, directory: Path, words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Wall seconds of the command in an empty directory."""
    directory.mkdir()
    command = ["-m", "dpo_core", "run"] if variant == "plain" else ["-m", "flows"]
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *command, *words],
        cwd=directory,
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(f"{variant}: {process.stdout[-2000:]}\n{process.stderr[-2000:]}")
    return time.perf_counter() - started


def report(times: Mapping[str, list[float]], words: Sequence[str]) -> None:
    median = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    plain = median.get("plain")
    print(f"\n{' '.join(words)}\n\n| way | median s | fastest s | over plain, s |\n|---|---|---|---|")
    for variant, seconds in times.items():
        over = f"{median[variant] - plain:+.1f}" if plain is not None and variant != "plain" else ""
        print(f"| {variant} | {median[variant]:.1f} | {min(seconds):.1f} | {over} |")
    summary: dict[str, object] = {"benchmark": "orchestration", "seconds": times, "median": median}
    if plain is not None and "servers" in median:
        over, aim = median["servers"] - plain, FIXED_S + SHARE * plain
        summary |= {"overhead_s": round(over, 2), "aim_s": round(aim, 2), "met": over <= aim}
        print(f"\nservers cost {over:.1f} s; the aim is {aim:.1f} s: {'met' if over <= aim else 'missed'}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
