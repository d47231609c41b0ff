"""``dpo deploy``: the deployments, with the work pool, the limit and the automations that they need, on a server."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from deployments import automations, catalogue
from dpo_core.config.spelling import did_you_mean_or_list
from dpo_core.errors import TrackingError
from flows.gpu_limit import LIMIT

TEMPLATES = Path(__file__).parent / "pools"
KINDS = ("process", "docker", "kubernetes")
LOCAL = "local"


@dataclass(frozen=True)
class DeploymentOptions:
    """What the command line asks of the deployments."""

    cron: str | None = None
    timezone: str | None = None
    pool: str | None = None
    kind: str | None = None
    gpus: int = 1


def wanted(wishes: DeploymentOptions, recipe_file: Path | None, words: Sequence[str]) -> dict[str, Any]:
    """The catalogue as these wishes change it. Raises RecipeError for what cannot be."""
    told = catalogue.read()
    told["deployments"] = [
        catalogue.with_pool(
            catalogue.with_schedule(catalogue.with_recipe(entry, recipe_file, words), wishes.cron, wishes.timezone),
            wishes.pool,
        )
        for entry in told["deployments"]
    ]
    return told


def deploy(client: SyncPrefectClient, wishes: DeploymentOptions, told: dict[str, Any]) -> list[str]:
    """Register everything; returns a line on each thing.

    Raises TrackingError when the work pool does not exist and no kind is said, or the server refuses something.
    """
    pool = wishes.pool or LOCAL
    lines = [ensure_pool(client, pool, wishes.kind or ("process" if pool == LOCAL else None))]
    client.upsert_global_concurrency_limit_by_name(LIMIT, wishes.gpus)
    lines.append(f"limit {LIMIT}: {wishes.gpus} stage(s) on a GPU at a time")
    register(told)
    lines += [describe(entry) for entry in told["deployments"]]
    return lines + automations.ensure(client, os.environ.get(automations.NOTIFY))


def ensure_pool(client: SyncPrefectClient, name: str, kind: str | None) -> str:
    """The work pool, made by its job template if a kind is said and it is not there."""
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        if kind is None:
            names = [pool.name for pool in client.read_work_pools()]
            raise TrackingError(
                f"There is no work pool {name!r} on this server.",
                "A deployment belongs to a work pool; --type process, docker or kubernetes makes one.",
                did_you_mean_or_list(name, sorted(names), "Deployments"),
            ) from None
        template = template_of(kind)
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return f"work pool {name}: made, {kind}; its worker: prefect worker start --pool {name}"
    if kind not in (None, there.type):
        raise TrackingError(
            f"Work pool {name!r} is of type {there.type}, not {kind}.",
            "A pool keeps the type it was made with.",
            f"Leave out --type, or name another pool: --pool {name}-{kind}.",
        )
    return f"work pool {name}: there, {there.type}"


def template_of(kind: str) -> dict[str, Any]:
    """The base job template of a kind of pool."""
    found: dict[str, Any] = json.loads((TEMPLATES / f"{kind}.json").read_text())
    return found


def register(told: dict[str, Any]) -> None:
    """Give the deployments to Prefect's own command, which knows all that its file can say."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "prefect.yaml"
        path.write_text(yaml.safe_dump(told, sort_keys=False))
        words = ["--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            cwd=place,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise TrackingError(
            f"Prefect refused the deployments: {said[-1] if said else 'it said nothing'}.",
            "What was registered before it stands.",
            "Mend it and run dpo deploy again: it changes what differs.",
        )


def describe(entry: dict[str, Any]) -> str:
    """A deployment in a line."""
    times = [
        f"{schedule['cron']} {schedule['timezone']}{'' if schedule['active'] else ' (paused)'}"
        for schedule in entry.get("schedules", [])
    ]
    when = ", ".join(times) or "when it is asked for"
    return f"deployment dpo/{entry['name']}: pool {entry['work_pool']['name']}, {when}"
