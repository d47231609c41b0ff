"""Command ``dpo eval``: one model, two models, wrong arguments, cached results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dpo_core.cli.eval_command import parse_command
from dpo_core.errors import RecipeError
from tests.evaluate.conftest import prompt_file
from tests.evaluate.test_run_task import ASKED, TASK

__all__ = ["prompt_file"]

PromptFile = Callable[[dict[str, dict[str, Any]]], Path]


COMMAND = [sys.executable, "-c", "from flows.cli.main import main; main()", "eval"]


def dpo(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``dpo eval …`` in a process of its own, with a terminal width of 100 columns."""
    command = [*COMMAND, *words]
    environment = os.environ | {"COLUMNS": "100", "INSPECT_CACHE_DIR": str(directory / "cache")}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.slow
def test_two_models_on_two_tasks_and_cached_results(stories: Path, prompt_file: PromptFile, tmp_path: Path) -> None:
    """One model under two names shows no difference; the second call generates nothing."""
    (tmp_path / "tales.py").write_text(TASK)
    (tmp_path / "twin").symlink_to(stories)
    words = ("--model", str(stories), "--against", "twin", "--task", "ifeval", "--task", "tales.py@words")
    words += (f"ifeval_path={prompt_file(ASKED)}", "max_new_tokens=12", "renderer_name=role_colon")
    first = dpo(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "ifeval: 3 samples" in first.stdout
    assert "tales.py@words: 3 samples" in first.stdout
    assert "No significant difference: prompt_strict" in first.stdout
    assert "0 prompts gained and 0 lost, exact McNemar p = 1" in first.stdout
    assert "punctuation:no_comma" in first.stdout
    assert first.stderr.count(": evaluating ") == 2  # the twin is the same model: its responses are cached
    again = dpo(tmp_path, *words)
    assert (again.stdout, "evaluating" in again.stderr) == (first.stdout, False)


@pytest.mark.slow
def test_one_model_with_a_limit(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text(TASK)
    words = ("--task=tales.py", "--limit=2", "max_new_tokens=4", "renderer_name=role_colon")
    done = dpo(tmp_path, f"--model={stories}", *words)
    assert done.returncode == 0, done.stderr
    assert "2 samples" in done.stdout
    assert "accuracy" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "code", "message"),
    [
        (signal.SIGINT, 75, "error: Stopped in stage answer. Finished stages are kept. Run the same command again"),
        (signal.SIGTERM, 75, "error: Stopped in stage answer. Finished stages are kept. Run the same command again"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_ends_all_processes(
    sign: signal.Signals, code: int, message: str, stories: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    prompts = prompt_file({f"Tell me of story {number}.": {"punctuation:no_comma": {}} for number in range(2000)})
    words = ("--model", str(stories), f"ifeval_path={prompts}", "max_new_tokens=400", "renderer_name=role_colon")
    command = [*COMMAND, *words, "eval_batch_size=32"]
    # Ctrl-C signals the whole process group; a process left behind would keep the pipe open.
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while process.poll() is None and not any(
            file.stat().st_size for file in tmp_path.glob("runs/store/answer/.*.jsonl")
        ):
            time.sleep(0.1)
        send = os.killpg if sign == signal.SIGINT else os.kill
        send(process.pid, sign)
        _, error = process.communicate(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, error
    lines = [
        line for line in error.splitlines(keepends=True) if not line.startswith(("ifeval: evaluating ", "generating: "))
    ]
    assert "".join(lines).startswith(message), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No model is given"),
        (["--model"], "--model has no value"),
        (["--model", "a", "--limit", "0"], "--limit 0 cannot be used. It is a whole number, 1 or more"),
        (["--model", "a", "--show", "many"], "--show many cannot be used"),
        (["--model", "a", "--judge", "openai/gpt-4o"], "Add --against B"),
        (["--model", "a", "ifeval_limit=0"], "ifeval_limit=0"),
        (["--model", "a", "task_limit=0"], "task_limit=0"),
        (["--model", "a", "--tasks", "ifeval", "eval_sed=3"], "Did you mean eval_seed"),
    ],
)
def test_wrong_arguments_are_errors(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_command(words)
    assert message in str(caught.value)


def test_the_last_model_counts_and_tasks_accumulate() -> None:
    evaluation = parse_command(
        ["--model", "a", "--model=b", "--task", "ifeval", "--task", "x.py@y", "--limit", "7", "eval_seed=3"]
    )
    assert (evaluation.model, evaluation.against, evaluation.recipe.evaluate.tasks) == ("b", None, ("ifeval", "x.py@y"))
    assert (evaluation.recipe.evaluate.ifeval_limit, evaluation.recipe.evaluate.task_limit) == (7, 7)
    assert evaluation.recipe.evaluate.eval_seed == 3
