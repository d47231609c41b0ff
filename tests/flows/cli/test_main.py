"""Command line ``dpo``: commands that replace the process, tracebacks, and Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context

from flows.cli import main

PROGRAM = "print('earlier output'); from flows.cli.main import main; main()"


class Replaced(Exception):
    """Raised instead of replacing the process."""


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["eval", "--model", "a", "eval_seed=1"], ["dpo_core", "eval", "--model", "a", "eval_seed=1"]),
        (["data", "hhh", "test_size=1"], ["dpo_core", "data", "hhh", "test_size=1"]),
        (["chat", "a"], ["dpo_core", "chat", "a", "max_new_tokens=256"]),
        (["generate", "a", "Why?"], ["dpo_core", "generate", "a", "Why?", "max_new_tokens=256"]),
        (["deploy", "--help"], ["deployments", "deploy", "--help"]),
    ],
)
def test_the_process_is_replaced(words: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(program: str, arguments: list[str]) -> None:
        raise Replaced(program, arguments)

    monkeypatch.setattr(os, "execv", replace)
    with pytest.raises(Replaced) as caught:
        main.main(words)
    assert caught.value.args == (sys.executable, [sys.executable, "-m", *command])


def dpo(directory: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def test_earlier_output_is_flushed_and_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    result = dpo(tmp_path, "eval")
    assert result.stdout == "earlier output\n"
    assert result.returncode == 2
    assert result.stderr.startswith("error: No model is given.")


def test_debug_reaches_the_replaced_process(tmp_path: Path) -> None:
    result = dpo(tmp_path, "--debug", "eval")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "RecipeError" in result.stderr


def test_ctrl_c_has_the_same_message_for_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example while a registered model is looked up, before the process is replaced."""

    def interrupt(_: Context) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.chat, "invoke", interrupt)
    with pytest.raises(SystemExit) as left:
        main.main(["chat", "models:/name@champion"])
    assert left.value.code == 75
    assert capsys.readouterr().err.startswith("error: Stopped. What is done is kept.")
