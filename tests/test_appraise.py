"""``dpo eval`` as it is typed: one model, two models, wrong words; a second call is a lookup."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_core.appraise import parse
from dpo_core.errors import RecipeError
from tests.evaluate.conftest import prompt_file
from tests.evaluate.test_answer import ASKED, TASK

__all__ = ["prompt_file"]

PromptFile = Callable[[dict[str, dict[str, Any]]], Path]


def dpo(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``dpo eval …`` in a process of its own, 100 columns wide."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", "eval", *words]
    environment = os.environ | {"COLUMNS": "100", "INSPECT_CACHE_DIR": str(place / "cache")}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
def test_two_models_on_two_tasks_and_again(stories: Path, prompt_file: PromptFile, tmp_path: Path) -> None:
    """The same model under two names differs in nothing; the second call asks nobody."""
    (tmp_path / "tales.py").write_text(TASK)
    (tmp_path / "twin").symlink_to(stories)
    words = ("--model", str(stories), "--against", "twin", "--task", "ifeval", "--task", "tales.py@words")
    words += (f"ifeval_path={prompt_file(ASKED)}", "max_new_tokens=12", "renderer_name=role_colon")
    first = dpo(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "ifeval: 3 samples" in first.stdout
    assert "tales.py@words: 3 samples" in first.stdout
    assert "The evidence does not tell them apart: prompt_strict" in first.stdout
    assert "0 prompts gained and 0 lost, exact McNemar p = 1" in first.stdout
    assert "punctuation:no_comma" in first.stdout
    assert first.stderr.count(": asking ") == 2  # the twin is the same model: its answers are there already
    again = dpo(tmp_path, *words)
    assert (again.stdout, "asking" in again.stderr) == (first.stdout, False)


@pytest.mark.slow
def test_one_model_with_a_limit(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "tales.py").write_text(TASK)
    words = ("--task=tales.py", "--limit=2", "max_new_tokens=4", "renderer_name=role_colon")
    done = dpo(tmp_path, f"--model={stories}", *words)
    assert done.returncode == 0, done.stderr
    assert "2 samples" in done.stdout
    assert "accuracy" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "No model is given"),
        (["--model"], "--model has no value"),
        (["--model", "a", "--limit", "0"], "--limit 0 cannot be used. It is a number, 1 or more"),
        (["--model", "a", "--show", "many"], "--show many cannot be used"),
        (["--model", "a", "--judge", "openai/gpt-4o"], "Add --against B"),
        (["--model", "a", "ifeval_limit=0"], "ifeval_limit=0"),
        (["--model", "a", "task_limit=0"], "task_limit=0"),
        (["--model", "a", "--tasks", "ifeval", "eval_sed=3"], "Did you mean eval_seed"),
    ],
)
def test_wrong_words_are_told(words: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(words)
    assert told in str(caught.value)


def test_the_last_word_counts_and_tasks_add_up() -> None:
    wanted = parse(["--model", "a", "--model=b", "--task", "ifeval", "--task", "x.py@y", "--limit", "7", "eval_seed=3"])
    assert (wanted.model, wanted.against, wanted.recipe.evaluate.tasks) == ("b", None, ("ifeval", "x.py@y"))
    assert (wanted.recipe.evaluate.ifeval_limit, wanted.recipe.evaluate.task_limit) == (7, 7)
    assert wanted.recipe.evaluate.eval_seed == 3
