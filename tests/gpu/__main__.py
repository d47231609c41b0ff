"""GPU checks: everything that needs a GPU, in one command of at most eight minutes; also ``make gpu``.

    python -m tests.gpu [--only NAME …] [--logs DIRECTORY] [--minutes 8]

The most important parts come first. Each part has a time limit, and prints PASS or FAIL with its figure as soon as it
ends, so that nothing is lost when the command is cut off. The pipelines and the laws run at the same time; timed parts
run alone. The command needs a checkout and dpo_core's packages, neither Prefect nor MLflow. Its exit code is 1 if a
part failed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
POLL_S = 0.2
TAIL_LINES = 12
FIGURE = "figure: "
UNITS = {
    "pairs_per_s": "pairs/s",
    "tokens_per_s": "tokens/s",
    "mfu_useful": "useful MFU",
    "peak_gb": "GB",
    "first_step_s": "s the first step",
    "setup_s": "s set-up",
    "overhead": "s overhead",
}


@dataclass(frozen=True)
class Part:
    """A command and its time limit in seconds. ``alone``: nothing may run at the same time, as it is timed."""

    name: str
    words: tuple[str, ...]
    seconds: float
    alone: bool = True

    def command(self, work: Path) -> list[str]:
        """The command line for this Python; WORK is replaced by the part's own directory."""
        return [sys.executable, *(word.replace("WORK", str(work_of(self, work))) for word in self.words)]


def step(name: str, options: str, seconds: float = 100) -> Part:
    """A part that runs ``benchmarks/dpo_step.py``."""
    return Part(f"step, {name}", ("benchmarks/dpo_step.py", "--batch-size", "256", *shlex.split(options)), seconds)


# Warnings are no errors here: they depend on the installed plugins and versions.
LAWS = "-m pytest -n 8 -W default -p no:cacheprovider -p no:benchmark -rf --durations=6 tests/gpu/test_laws.py"
GENERATION = "--shape 1b --prompts 256 --max-new-tokens 128 --precision bf16 --ours"
PARTS = (
    Part("pipeline, LoRA on 100M", ("-m", "tests.gpu.pipeline", "lora", "WORK"), 300, alone=False),
    Part("pipeline, demo", ("-m", "tests.gpu.pipeline", "demo", "WORK"), 240, alone=False),
    Part("laws", tuple(shlex.split(LAWS)), 240, alone=False),
    step("1b full, HH", "--shape 1b --steps 4 --ours"),
    step("1b LoRA, HH", "--shape 1b --steps 4 --lora-rank 32 --ours"),
    Part("generation, 1b", ("benchmarks/generate.py", *shlex.split(GENERATION)), 120),
    step("1b full, UltraFeedback", "--shape 1b --steps 4 --lengths ultrafeedback --ours"),
    step("1b full, TRL, HH", "--shape 1b --steps 3 --trl 16"),
    step("8b LoRA, 8k", "--shape 8b --steps 3 --lengths 8k --lora-rank 32 --batch-size 8 --recompute --ours", 150),
)


def main() -> int:
    """Run the parts in their order; returns 1 if any failed."""
    options = parse()
    deadline = time.monotonic() + 60 * options.minutes
    selected = [part for part in PARTS if not options.only or any(word in part.name for word in options.only)]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="dpo-gpu-") as work:
        for group in groups(selected):
            failed += run(group, Path(work), options.logs, deadline)
    print(f"{len(selected) - failed} of {len(selected)} parts passed", flush=True)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="only parts whose name contains one of these words")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="directory of the parts' output")
    parser.add_argument("--minutes", type=float, default=8)
    return parser.parse_args()


def groups(parts: list[Part]) -> Iterator[list[Part]]:
    """The parts that run at the same time as one group, then each of the others alone."""
    parallel = [part for part in parts if not part.alone]
    if parallel:
        yield parallel
    yield from ([part] for part in parts if part.alone)


def run(group: list[Part], work: Path, logs: Path, deadline: float) -> int:
    """Run parts at the same time and report each as it ends; returns how many failed."""
    started = time.monotonic()
    running = {part: start(part, work, logs) for part in group if started < deadline}
    failed = len(group) - len(running)
    for part in group[len(running) :]:
        print(f"FAIL      0 s  {part.name}: no time was left", flush=True)
    while running:
        for part, process in list(running.items()):
            seconds = time.monotonic() - started
            late = seconds > part.seconds or time.monotonic() > deadline
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            passed = report(part, process.returncode, seconds, logs)
            failed += not passed
            keep_logs(part, work, logs, show=not passed)
            del running[part]
        time.sleep(POLL_S)
    return failed


def start(part: Part, work: Path, logs: Path) -> "subprocess.Popen[bytes]":
    """Start the part's process, its output in its log."""
    directory = work_of(part, work)
    directory.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(directory),
    }
    with log_of(part, logs).open("wb") as log:
        return subprocess.Popen(
            part.command(work), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )


def report(part: Part, code: int, seconds: float, logs: Path) -> bool:
    """Print a part's result line, after a failure also the end of its output; returns whether it passed."""
    lines = log_of(part, logs).read_text(errors="replace").rstrip().splitlines() or [""]
    figure = figure_of(lines)
    passed = code == 0 and figure is not None
    print(f"{'PASS' if passed else 'FAIL'} {seconds:6.0f} s  {part.name}: {figure or lines[-1][:200]}", flush=True)
    if not passed:
        print("\n".join(f"        {line[:200]}" for line in lines[-TAIL_LINES:]), flush=True)
    return passed


def keep_logs(part: Part, work: Path, logs: Path, show: bool) -> None:
    """Append the logs of the part's own commands to its log; ``show``: print the end of each."""
    with log_of(part, logs).open("a") as log:
        for file in sorted(work_of(part, work).glob("*.log")):
            text = file.read_text(errors="replace")
            log.write(f"\n== {file.name}\n{text}")
            if show:
                print("\n".join(f"        {file.stem}: {line[:200]}" for line in text.splitlines()[-TAIL_LINES:]))


def figure_of(lines: list[str]) -> str | None:
    """A part's figure: its line ``figure: …``, its benchmark's JSON in short, or its last line; None without any."""
    found = [line.removeprefix(FIGURE) for line in lines if line.startswith(FIGURE)]
    if found or not lines[-1].startswith("{"):
        return found[-1] if found else lines[-1]
    contenders = json.loads(lines[-1])["contenders"]
    return "; ".join(f"{name}: {summarize(figures)}" for name, figures in contenders.items()) or None


def summarize(figures: dict[str, Any]) -> str:
    """A contender's figures in one line, its first loss among them."""
    measured = [f"{figures[name]:.4g} {unit}" for name, unit in UNITS.items() if figures.get(name) is not None]
    words = [f"{name} {figures[name]}" for name in ("layout", "token_budget") if name in figures]
    losses = [f"loss {figures['losses'][0]:.5f}"] if "losses" in figures else []
    return ", ".join([*measured, *words, *losses])


def work_of(part: Part, work: Path) -> Path:
    """The part's own directory."""
    return work / part.name.replace(" ", "-").replace(",", "")


def log_of(part: Part, logs: Path) -> Path:
    """The file of a part's output."""
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{part.name.replace(' ', '-').replace(',', '')}.log"


if __name__ == "__main__":
    sys.exit(main())
