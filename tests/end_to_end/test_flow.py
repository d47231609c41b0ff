"""The flow as users run it: without servers, with servers, and as a deployment, on real data and a real model."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import mlflow.pyfunc
import pytest
from mlflow import MlflowClient

from flows.cli import ui
from tests.conftest import ROOT, shared

PROMPTS = [
    {"key": 1, "prompt": "Say hello.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Answer with fewer than 5 words.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "less than", "num_words": 5}],
    },
]


class Place:
    """A directory for runs, with Prefect's and MLflow's homes in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DPO_", "MLFLOW_", "PREFECT_"))
        } | {"PREFECT_HOME": str(path / "prefect")}
        (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))

    def words(self) -> dict[str, object]:
        return {
            "dataset": str(shared("data", "hh-rlhf", "helpful-base-train-first100.jsonl")),
            "model_name": str(shared("models", "stories260K")),
            "renderer_name": "role_colon",
            "lora_rank": 8,
            "batch_size": 8,
            "max_steps": 5,
            "max_length": 256,
            "max_new_tokens": 16,
            "num_samples": 2,
            "ifeval_path": str(self.path / "prompts.jsonl"),
            "registered_model_name": "stories",
        }

    def run(self, *words: str, **environment: str) -> str:
        command = [sys.executable, "-m", "flows", *(f"{name}={value}" for name, value in self.words().items()), *words]
        process = subprocess.run(
            command, cwd=self.path, env=self.environment | environment, capture_output=True, text=True, timeout=500
        )
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        return process.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="module")
def first(place: Place) -> str:
    return place.run()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.main_job
def test_a_run_without_servers_leaves_a_servable_version(place: Place, first: str) -> None:
    client = MlflowClient(f"sqlite:///{place.path / 'mlruns' / 'mlflow.db'}")
    version = client.get_model_version_by_alias("stories", "candidate")
    run = client.get_run(version.run_id or "")
    assert run.info.status == "FINISHED"
    assert (run.data.params["dpo_beta"], run.data.params["renderer_name"]) == ("0.1", "role_colon")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "dpo_loss")] == [1, 2, 3, 4, 5]
    assert "after/prompt_strict_acc" in run.data.metrics
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs]
    assert {"dpo.recipe_hash", "dpo.data_fingerprint", "prefect.flow_run"} <= version.tags.keys()
    assert version.tags["dpo.promotion"] in first
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"curves.png", "recipe.toml", "journal", "evaluation", "samples.json"} <= names

    mlflow.set_tracking_uri(f"sqlite:///{place.path / 'mlruns' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"models:/stories/{version.version}")
    [response] = model.predict({"messages": [{"role": "user", "content": "Hello"}]}, params={"max_new_tokens": 5})
    assert isinstance(response, str)


@pytest.mark.slow
@pytest.mark.main_job
def test_the_output_in_the_terminal(first: str) -> None:
    for words in ("Run", "held out", "Example 1", "step 5/5 dpo_loss", "Base and trained"):
        assert words in first
    assert "dpo chat" in first


@pytest.mark.slow
@pytest.mark.main_job
def test_the_second_run_is_all_cache_hits_and_registers_nothing_new(place: Place, first: str) -> None:
    output = place.run()
    stages = [line for line in output.splitlines() if line.endswith((": cached", ": done"))]
    assert [line for line in stages if line.endswith("done")] == ["promote: done"]
    client = MlflowClient(f"sqlite:///{place.path / 'mlruns' / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'stories'")) == 1


@pytest.fixture(scope="module")
def prefect(place: Place) -> Iterator[str]:
    """A Prefect server on a free port."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        command, env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{api}/health"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield api
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def request_json(api: str, path: str, body: dict[str, Any]) -> Any:
    request = Request(f"{api}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.main_job
def test_against_running_servers(place: Place, prefect: str) -> None:
    store = f"sqlite:///{place.path / 'served.db'}"
    with ui.running_server(store, free_port()) as (_, address):
        place.run("dpo_beta=0.2", PREFECT_API_URL=prefect, MLFLOW_TRACKING_URI=address)
        client = MlflowClient(address)
        assert client.get_model_version_by_alias("stories", "candidate").version == "1"
    [run] = request_json(prefect, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert run["state"]["type"] == "COMPLETED"
    tasks = request_json(prefect, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    states = {task["name"].rpartition("-")[0]: task["state"]["name"] for task in tasks}
    stages = "acquire prompts render warm_start score_reference train evaluate register promote"
    assert set(stages.split()) <= states.keys()
    assert (states["render"], states["train"]) == ("Cached", "Completed")
    [artifact] = request_json(prefect, "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    assert "version 1" in artifact["data"]


@pytest.mark.slow
def test_as_a_deployment_run_by_a_worker(place: Place, prefect: str) -> None:
    environment = place.environment | {"PREFECT_API_URL": prefect, "DPO_HOME": str(ROOT)}

    def cli(*words: str) -> str:
        process = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    cli("work-pool", "create", "--type", "process", "local")
    cli("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    store = f"sqlite:///{place.path / 'mlruns' / 'mlflow.db'}"
    leaves = place.words() | {"runs_dir": str(place.path / "runs"), "tracking_uri": store}
    cli("deployment", "run", "dpo/on-demand", "--param", f"recipe={json.dumps(nested(leaves))}")
    cli("worker", "start", "--pool", "local", "--run-once")
    [run] = request_json(prefect, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert (run["state"]["type"], run["deployment_id"] is not None) == ("COMPLETED", True), run["state"]


def nested(leaves: dict[str, object]) -> dict[str, dict[str, object]]:
    """Leaves under their sections, as a deployment's parameter wants them."""
    from dpo_core.config.recipe import LEAVES

    tree: dict[str, dict[str, object]] = {}
    for leaf, value in leaves.items():
        tree.setdefault(LEAVES[leaf], {})[leaf] = value
    return tree
