"""Errors for wrong input: an exit code, one line on stderr, no traceback, nothing written."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.train.checkpoint import run_dir
from tests.conftest import pair_rows

Writer = Callable[..., Path]


def dpo(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``dpo …`` in an empty directory, without the network."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DPO_", "MLFLOW_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli.main import main; main()", *words],
        cwd=place,
        env=clean | {"HF_HOME": str(place / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def refused(process: subprocess.CompletedProcess[str], place: Path, code: int, *fragments: str) -> None:
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert all(fragment in process.stderr for fragment in fragments), process.stderr
    assert not (place / "runs").exists()
    assert not (place / "mlruns").exists()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def pairs(write_jsonl: Writer) -> Path:
    return write_jsonl(pair_rows(20))


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (["learning_rat=1"], 2, ["Did you mean learning_rate?"]),
        (["batch_size=many"], 2, ["batch_size=many", "pairs an optimizer step"]),
        (["test_path=x.jsonl"], 2, ["test_path has no effect"]),
        (["missing.toml"], 2, ["no recipe file missing.toml"]),
        (["dataset=missing.jsonl", "model_name=./nowhere"], 3, ["no dataset missing.jsonl"]),
        (["renderer_name=role_colom", "model_name=./x"], 2, ["Did you mean role_colon?"]),
        (["tracking_uri=http://nowhere.invalid:5000"], 6, ["http://nowhere.invalid:5000 does not answer"]),
    ],
)
def test_a_wrong_command_line(place: Path, words: list[str], code: int, fragments: list[str]) -> None:
    refused(dpo(place, "run", *words), place, code, *fragments)


def test_a_missing_model_name_and_a_missing_model_directory(place: Path, pairs: Path) -> None:
    refused(dpo(place, "run", f"dataset={pairs}"), place, 2, "No model is given", "model_name=")
    refused(dpo(place, "run", f"dataset={pairs}", "model_name=./nowhere"), place, 2, "no model directory ./nowhere")


def test_a_model_without_its_tokenizer_or_configuration(
    place: Path, pairs: Path, stories: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(stories, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refused(dpo(place, "run", f"dataset={pairs}", f"model_name={model}"), place, 2, "has no tokenizer")
    (model / "config.json").unlink()
    refused(dpo(place, "run", f"dataset={pairs}", f"model_name={model}"), place, 2, "holds no config.json")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["dataset=hhh", "model_name=x/y"], "dataset Anthropic/hh-rlhf is not in the cache"),
        (["model_name=meta-llama/Llama-3.2-1B"], "model meta-llama/Llama-3.2-1B is not in the cache"),
        (["model_name={stories}"], "dataset google/IFEval is not in the cache"),
    ],
)
def test_an_unreachable_hub_gives_one_line(
    place: Path, pairs: Path, stories: Path, words: list[str], fragment: str
) -> None:
    given = [word.format(stories=stories) for word in words]
    process = dpo(place, "run", f"dataset={pairs}", *given)
    refused(
        process, place, 2 if "model" in fragment else 3, "The hub cannot be reached", fragment, "HF_HOME", "HF_TOKEN"
    )


def test_a_missing_interpreter_is_an_error_before_any_stage_runs(place: Path, pairs: Path, stories: Path) -> None:
    words = [f"dataset={pairs}", f"model_name={stories}", "tasks=", "eval_python=venv/bin/python"]
    message = f"There is no interpreter eval_python={place}/venv/bin/python."
    refused(dpo(place, "run", *words), place, 2, message, "docs/vllm.md")


def test_a_prefect_server_that_does_not_answer(place: Path, pairs: Path, stories: Path) -> None:
    words = [f"dataset={pairs}", f"model_name={stories}", "tasks="]
    process = dpo(place, "run", *words, PREFECT_API_URL="http://127.0.0.1:9/api")
    refused(process, place, 6, "Prefect server at 127.0.0.1 does not answer", "prefect server start")


def test_a_port_that_is_in_use_for_the_ui(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(dpo(place, "ui", "--port", str(port)), place, 6, f"Port {port}", "--port")


@pytest.mark.parametrize(
    ("behaviour", "fragment"),
    [
        ("ask", "never overwritten unasked"),
        ("raise", "never overwritten unasked"),
        ("resume", "Only the same run can be resumed"),
    ],
)
def test_an_existing_log_path_of_another_run_is_left_alone(
    place: Path, pairs: Path, stories: Path, tmp_path: Path, behaviour: str, fragment: str
) -> None:
    log_path = tmp_path / "old"
    log_path.mkdir()
    run_dir.write_config(log_path, {"fingerprint": "f", "recipe": {"train": {"dpo_beta": 0.5}}})
    words = [f"dataset={pairs}", f"model_name={stories}", "tasks=", f"log_path={log_path}"]
    process = dpo(place, "run", *words, f"behavior_if_log_dir_exists={behaviour}")
    refused(process, place, 2, fragment, "dpo_beta: 0.5 there, 0.1 now")
    assert (log_path / "config.json").exists()


def test_delete_removes_only_a_runs_directory(place: Path, pairs: Path, stories: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    words = [f"dataset={pairs}", f"model_name={stories}", "tasks=", f"log_path={other}"]
    refused(dpo(place, "run", *words, "behavior_if_log_dir_exists=delete"), place, 2, "exists and holds no run")
    assert (other / "chapter.txt").exists()


def test_an_error_shows_its_traceback_only_when_asked(place: Path) -> None:
    process = dpo(place, "run", "learning_rat=1", "--debug")
    assert process.returncode != 0
    assert "Traceback" in process.stderr
