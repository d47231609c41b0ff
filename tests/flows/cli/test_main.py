"""The commands that go on as another package's: nobody stands between them and their signals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context

from flows.cli import main

PROGRAM = "print('said'); from flows.cli.main import main; main()"


class Replaced(Exception):
    """This process would now be another."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "--model", "a", "eval_seed=1"], ["dpo_core", "eval", "--model", "a", "eval_seed=1"]),
        (["data", "hhh", "test_size=1"], ["dpo_core", "data", "hhh", "test_size=1"]),
        (["chat", "a"], ["dpo_core", "chat", "a", "max_new_tokens=256"]),
        (["generate", "a", "Why?"], ["dpo_core", "generate", "a", "Why?", "max_new_tokens=256"]),
        (["deploy", "--help"], ["deployments", "deploy", "--help"]),
    ],
)
def test_the_process_is_replaced(words: list[str], told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(program: str, command: list[str]) -> None:
        raise Replaced(program, command)

    monkeypatch.setattr(os, "execv", replace)
    with pytest.raises(Replaced) as caught:
        main.main(words)
    assert caught.value.args == (sys.executable, [sys.executable, "-m", *told])


def dpo(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)


def test_what_was_said_before_is_not_lost_and_the_exit_code_is_its_own(tmp_path: Path) -> None:
    told = dpo(tmp_path, "eval")
    assert told.stdout == "said\n"
    assert told.returncode == 2
    assert told.stderr.startswith("error: No model is given.")


def test_it_is_told_to_show_tracebacks_too(tmp_path: Path) -> None:
    told = dpo(tmp_path, "--debug", "eval")
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    assert "RecipeError" in told.stderr


def test_ctrl_c_is_told_the_same_way_whatever_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As while a registered model is looked for, before anything is replaced."""

    def interrupt(_: Context) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.chat, "invoke", interrupt)
    with pytest.raises(SystemExit) as left:
        main.main(["chat", "models:/name@champion"])
    assert left.value.code == 75
    assert capsys.readouterr().err.startswith("error: Stopped. What is done is kept.")
