"""Time of the commands that read MLflow on a store with many runs and points.

    python benchmarks/tracking_scale.py [--runs 1000] [--points 2000000] [--uri postgresql://…] [--repeats 3]

Inserts runs with parameters, curves and final metrics straight into the store's tables (through MLflow this would take
hours), then runs the commands as a user does and takes the best wall time of each. ``empty`` is ``dpo runs`` on an
experiment with one run: the cost of importing and connecting. ``page`` is the requests of the experiment page of
MLflow's UI: its table, and a chart. Without ``--uri`` the store is sqlite in a temporary directory; a database that is
given must be empty, and keeps what was inserted. Prints a table, and a line of JSON.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag

from deployments.servers.processes import free_port
from dpo_core.config.recipe import Recipe, TrackSettings
from flows.cli import ui
from flows.tracking import mlflow_run

CURVES = ("dpo_loss", "accuracy", "margin", "learning_rate", "progress", "test/dpo_loss", "test/accuracy", "grad_norm")
FINAL = {"after/prompt_strict_acc": 0.6, "after/test/accuracy": 0.8, "after/test/nll_chosen": 1.2}
INTERVAL = {"after/test/accuracy_low": 0.78, "after/test/accuracy_high": 0.82, "after/test/num_pairs": 1024.0}
JSON_TYPE = {"Content-Type": "application/json"}
START, CHUNK, PROMPTS = 1_790_000_000_000, 20_000, 541


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="dpo-bench-") as directory:
        uri = arguments.uri or f"sqlite:///{directory}/mlflow.db"
        inserted, ids = fill(uri, Path(directory), arguments.runs, arguments.points)
        timings = measure_commands(uri, ids, Path(directory), arguments.repeats) | measure_page(
            uri, ids, arguments.repeats
        )
    print(f"{arguments.runs} runs, {arguments.points} points, inserted in {inserted:.0f} s\n")
    for name, seconds in timings.items():
        print(f"{name:<34}{seconds:8.2f} s")
    summary = {"runs": arguments.runs, "points": arguments.points, "store": uri.split(":")[0], **timings}
    print(json.dumps(summary))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=2_000_000)
    parser.add_argument("--uri", default=None, help="an empty database (default: sqlite in a temporary directory)")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def fill(uri: str, directory: Path, runs: int, points: int) -> tuple[float, list[str]]:
    """Insert everything; returns the seconds of the insertion, and the runs' ids."""
    client = mlflow_run.connect(uri)
    experiments = [
        client.create_experiment(name, artifact_location=str(directory / "artifacts" / name))
        for name in ("many", "one")
    ]
    ids = [uuid.uuid4().hex for _ in range(runs)]
    started = time.perf_counter()
    engine = sqlalchemy.create_engine(uri)
    root = str(directory / "artifacts" / "many")
    with engine.begin() as connection:
        insert(connection, SqlRun, (row(run, index, int(experiments[0]), root) for index, run in enumerate(ids)))
        insert(connection, SqlTag, (tag for index, run in enumerate(ids) for tag in tags(run, index)))
        insert(connection, SqlParam, (param for index, run in enumerate(ids) for param in params(run, index)))
        steps = max(points // runs // len(CURVES), 1)
        insert(connection, SqlMetric, (point for run in ids for point in curves(run, range(1, steps + 1))))
        insert(connection, SqlMetric, (point for index, run in enumerate(ids) for point in final(run, index)))
        latest = (point for index, run in enumerate(ids) for point in (*curves(run, [steps]), *final(run, index)))
        insert(connection, SqlLatestMetric, latest)
    engine.dispose()
    seconds = time.perf_counter() - started
    client.create_run(experiments[1])
    evaluate(client, ids[:3], directory)
    return seconds, ids


def insert(connection: sqlalchemy.Connection, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    """Insert rows into a table, ``CHUNK`` at a time."""
    while chunk := list(islice(rows, CHUNK)):
        connection.execute(sqlalchemy.insert(table), chunk)


def row(run: str, index: int, experiment: int, root: str) -> dict[str, Any]:
    return {
        "run_uuid": run,
        "name": run_name(index),
        "source_type": "LOCAL",
        "user_id": "bench",
        "status": "FINISHED",
        "start_time": START + index,
        "end_time": START + index + 1000,
        "lifecycle_stage": "active",
        "artifact_uri": f"{root}/{run}/artifacts",
        "experiment_id": experiment,
    }


def run_name(index: int) -> str:
    return f"lr{1e-6 * (1 + index % 7):g} beta{0.05 * (1 + index % 5):g} run-{index:05d}"


def tags(run: str, index: int) -> Iterator[dict[str, Any]]:
    for key, value in {"mlflow.runName": run_name(index), mlflow_run.FINGERPRINT: run}.items():
        yield {"run_uuid": run, "key": key, "value": value}


def params(run: str, index: int) -> Iterator[dict[str, Any]]:
    values = mlflow_run.parameters(Recipe(track=TrackSettings(experiment_name="many")))
    values |= {"learning_rate": f"{1e-6 * (1 + index % 7):g}", "dpo_beta": f"{0.05 * (1 + index % 5):g}"}
    for key, value in values.items():
        yield {"run_uuid": run, "key": key, "value": value}


def curves(run: str, steps: Any) -> Iterator[dict[str, Any]]:
    for step in steps:
        for key in CURVES:
            yield metric(run, key, math.exp(-step / 100), step)


def final(run: str, index: int) -> Iterator[dict[str, Any]]:
    for key, value in (FINAL | INTERVAL).items():
        yield metric(run, key, value + 0.0001 * (index % 100), 0)


def metric(run: str, key: str, value: float, step: int) -> dict[str, Any]:
    return {"run_uuid": run, "key": key, "value": value, "timestamp": START + step, "step": step, "is_nan": False}


def evaluate(client: MlflowClient, ids: list[str], directory: Path) -> None:
    """Log outcomes on the same prompts for the runs that are compared."""
    for index, run in enumerate(ids):
        path = directory / f"{run}" / "outcomes.jsonl"
        path.parent.mkdir()
        lines = [{"key": n, "prompt": f"p{n}", "strict": [(n + index) % 3 > 0], "error": None} for n in range(PROMPTS)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        client.log_artifact(run, str(path), "evaluation/after")


def measure_commands(uri: str, ids: list[str], directory: Path, repeats: int) -> dict[str, float]:
    """The best wall time of each command in seconds, of ``repeats`` runs."""
    commands = {
        "dpo runs, empty": ["runs", "--experiment-name", "one"],
        "dpo runs, the newest 50": ["runs", "--experiment-name", "many"],
        "dpo runs, all": ["runs", "--experiment-name", "many", "--limit", str(len(ids))],
        "dpo compare, three runs": ["compare", *ids[:3], "--experiment-name", "many"],
        "dpo compare, by part of a name": ["compare", "run-00000", "run-00001", "--experiment-name", "many"],
    }
    return {
        name: min(time_command(uri, arguments, directory) for _ in range(repeats))
        for name, arguments in commands.items()
    }


def measure_page(uri: str, ids: list[str], repeats: int) -> dict[str, float]:
    """The best time of each request of MLflow's experiment page in seconds, of ``repeats``."""
    experiment = MlflowClient(uri).get_experiment_by_name("many")
    assert experiment is not None
    table = {
        "experiment_ids": [experiment.experiment_id],
        "max_results": 100,
        "order_by": ["attributes.start_time DESC"],
    }
    chart = urlencode({"run_ids": ids[:10], "metric_key": CURVES[0], "max_results": 320}, doseq=True)
    with ui.running_server(uri, free_port()) as (_, address):
        api = f"{address}/ajax-api/2.0/mlflow"
        requests = {
            "page: table of the newest 100": Request(f"{api}/runs/search", json.dumps(table).encode(), JSON_TYPE),
            "page: one curve of ten runs": Request(f"{api}/metrics/get-history-bulk-interval?{chart}"),
        }
        return {name: min(time_request(request) for _ in range(repeats)) for name, request in requests.items()}


def time_request(request: Request) -> float:
    """Wall seconds until the response is read."""
    started = time.perf_counter()
    with urlopen(request, timeout=120) as response:
        response.read()
    return round(time.perf_counter() - started, 3)


def time_command(uri: str, arguments: list[str], directory: Path) -> float:
    """Wall seconds of a dpo command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DPO_")}
    environment |= {"MLFLOW_TRACKING_URI": uri, "COLUMNS": "200"}
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", *arguments]
    started = time.perf_counter()
    process = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"dpo {' '.join(arguments)} failed:\n{process.stderr[-3000:]}")
    return round(time.perf_counter() - started, 3)


if __name__ == "__main__":
    main()
