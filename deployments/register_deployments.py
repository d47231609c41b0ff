"""Registration of the deployments (``dpo deploy``), with their work pool, concurrency limit and automations."""

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
LOCAL_POOL = "local"


@dataclass(frozen=True)
class DeploymentOptions:
    """Options of the command line; None keeps what prefect.yaml says."""

    cron: str | None = None
    timezone: str | None = None
    pool: str | None = None
    kind: str | None = None
    gpus: int = 1


def read_catalogue(options: DeploymentOptions, recipe_file: Path | None, words: Sequence[str]) -> dict[str, Any]:
    """The catalogue with the options and settings applied.

    Raises RecipeError for a setting or schedule that is not valid.
    """
    content = catalogue.read()
    content["deployments"] = [
        catalogue.with_pool(
            catalogue.with_schedule(catalogue.with_recipe(entry, recipe_file, words), options.cron, options.timezone),
            options.pool,
        )
        for entry in content["deployments"]
    ]
    return content


def deploy(client: SyncPrefectClient, options: DeploymentOptions, content: dict[str, Any]) -> list[str]:
    """Register everything; returns one line for each registered object.

    Raises TrackingError when the work pool does not exist and no kind is given, or the server refuses a request.
    """
    pool = options.pool or LOCAL_POOL
    lines = [ensure_pool(client, pool, options.kind or ("process" if pool == LOCAL_POOL else None))]
    client.upsert_global_concurrency_limit_by_name(LIMIT, options.gpus)
    lines.append(f"limit {LIMIT}: {options.gpus} stage(s) on a GPU at the same time")
    register(content)
    lines += [describe(entry) for entry in content["deployments"]]
    return lines + automations.ensure(client, os.environ.get(automations.WEBHOOK_VARIABLE))


def ensure_pool(client: SyncPrefectClient, name: str, kind: str | None) -> str:
    """Create the work pool unless it exists; returns a line about it.

    Raises TrackingError when it does not exist and ``kind`` is None, or it exists with another type.
    """
    try:
        existing = client.read_work_pool(name)
    except ObjectNotFound:
        if kind is None:
            names = [pool.name for pool in client.read_work_pools()]
            raise TrackingError(
                f"There is no work pool {name!r} on this server.",
                "A deployment belongs to a work pool; --type process, docker or kubernetes creates one.",
                did_you_mean_or_list(name, sorted(names), "Work pools"),
            ) from None
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=read_job_template(kind)))
        return f"work pool {name}: created, type {kind}; start its worker: prefect worker start --pool {name}"
    if kind not in (None, existing.type):
        raise TrackingError(
            f"Work pool {name!r} is of type {existing.type}, not {kind}.",
            "A pool keeps the type it was created with.",
            f"Leave out --type, or name another pool: --pool {name}-{kind}.",
        )
    return f"work pool {name}: exists, type {existing.type}"


def read_job_template(kind: str) -> dict[str, Any]:
    """The base job template of a work pool of this kind."""
    template: dict[str, Any] = json.loads((TEMPLATES / f"{kind}.json").read_text())
    return template


def register(content: dict[str, Any]) -> None:
    """Register the deployments by ``prefect deploy``, which supports every key of prefect.yaml.

    Raises TrackingError when Prefect refuses one.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "prefect.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        arguments = ["--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        result = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if result.returncode:
        output = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        raise TrackingError(
            f"Prefect refused the deployments: {output[-1] if output else 'no output'}.",
            "Deployments registered before this one stay registered.",
            "Correct it and run dpo deploy again: only what differs is changed.",
        )


def describe(entry: dict[str, Any]) -> str:
    """A line about a deployment: its work pool and schedules."""
    times = [
        f"{schedule['cron']} {schedule['timezone']}{'' if schedule['active'] else ' (paused)'}"
        for schedule in entry.get("schedules", [])
    ]
    when = ", ".join(times) or "on request"
    return f"deployment dpo/{entry['name']}: pool {entry['work_pool']['name']}, {when}"
