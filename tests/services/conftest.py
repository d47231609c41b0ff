"""Postgres, both servers with their logins, and two workers: started once for all tests."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import pair_rows, shared
from tests.services.team import Team


@pytest.fixture(scope="package")
def team() -> Iterator[Team]:
    pytest.importorskip("psycopg2", reason="needs the extra `servers`: pip install -e '.[servers]'")
    pytest.importorskip("flask_wtf", reason="needs the extra `servers`: pip install -e '.[servers]'")
    from deployments.servers import local_servers, postgres

    if postgres.binaries() is None:
        pytest.skip("needs Postgres: apt install postgresql")
    # Not below pytest's own directory: when root owns it, the user that Postgres runs as cannot enter it.
    with tempfile.TemporaryDirectory(prefix="dpo-servers-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)
        pairs = directory / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))
        settings = {
            "dataset": pairs,
            "model_name": shared("models", "stories260K"),
            "renderer_name": "role_colon",
            "lora_rank": 4,
            "batch_size": 4,
            "max_steps": 2,
            "max_length": 128,
            "max_new_tokens": 4,
            "num_samples": 0,
            "eval_every": 0,
            "tasks": "none",
            "registered_model_name": "stories",
        }
        with local_servers.running(directory / "servers", local_servers.Ports(0, 0), dpo_home=directory) as running:
            team = Team(running, directory, settings)
            team.deploy()
            yield team


@pytest.fixture(scope="package")
def workers(team: Team) -> Iterator[list[Any]]:
    started = [team.servers.worker(name) for name in ("first", "second")]
    try:
        for worker in started:
            worker.start()
        yield started
    finally:
        for worker in started:
            worker.stop()
