"""The run's journal: append-only JSON lines, the truth about a training run."""

import json
import os
from pathlib import Path
from typing import Any

from dpo_core.cache import atomic_files
from dpo_core.records import StepMetrics


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line, on the disk before this returns."""
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a last one cut off by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def read_steps(path: Path) -> list[StepMetrics]:
    """The steps of ``metrics.jsonl``, in order."""
    return [from_row(row) for row in read(path)]


def to_row(metrics: StepMetrics) -> dict[str, Any]:
    """A step as its line: ``step`` first, then ``time``, then the metrics by name."""
    return {"step": metrics.step, "time": metrics.time, **metrics.values}


def from_row(row: dict[str, Any]) -> StepMetrics:
    """The inverse of :func:`to_row`."""
    values = {name: value for name, value in row.items() if name not in ("step", "time")}
    return StepMetrics(step=row["step"], time=row["time"], values=values)


def rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite a journal to exactly these lines, aside and renamed."""
    atomic_files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
