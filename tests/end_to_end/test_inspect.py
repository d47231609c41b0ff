"""``inspect eval`` as anyone types it, in a process of its own: our models by directory, registered name and alias."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from tests.evaluate.test_run_task import TASK
from tests.flows.conftest import candidate, empty_store, recipe, run, track
from tests.flows.registry.test_model_uri import world

__all__ = ["candidate", "empty_store", "recipe", "run", "track", "world"]

pytestmark = pytest.mark.slow


def evaluated(place: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``inspect eval words.py --model dpo/<name>``, its logs in ``place/logs``."""
    (place / "words.py").write_text(TASK)
    shutil.rmtree(place / "logs", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("inspect")), "eval", "words.py", "--model", f"dpo/{name}"]
    options = ["--max-tokens", "8", "--log-dir", "logs", "--display", "plain", *words]
    return subprocess.run(
        [*command, *options], cwd=place, env=dict(os.environ), capture_output=True, text=True, timeout=100, check=False
    )


def log(place: Path) -> EvalLog:
    [found] = list_eval_logs(str(place / "logs"))
    return read_eval_log(found)


def said(place: Path) -> list[str]:
    return [sample.output.completion for sample in log(place).samples or []]


def test_a_directory(stories: Path, tmp_path: Path) -> None:
    """With arguments of the provider's, log-probabilities and several answers."""
    words = ("-M", "batch_size=2", "-M", "renderer_name=role_colon", "--logprobs", "--num-choices", "2")
    done = evaluated(tmp_path, str(stories), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    told = log(tmp_path)
    assert (told.status, told.eval.model, len(told.samples or [])) == ("success", f"dpo/{stories}", 3)
    for sample in told.samples or []:
        assert [choice.stop_reason for choice in sample.output.choices] == ["max_tokens"] * 2
        assert sample.output.choices[0].logprobs is not None
        assert len(sample.output.choices[0].logprobs.content) == 8


@pytest.mark.usefixtures("world")
def test_a_registered_name_and_an_alias(stories: Path, tmp_path: Path) -> None:
    """They answer as the directory does that was registered."""
    assert evaluated(tmp_path, str(stories)).returncode == 0
    expected = said(tmp_path)
    for name in ("dpo-test", "models:/dpo-test@champion"):
        done = evaluated(tmp_path, name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said(tmp_path) == expected
    done = evaluated(tmp_path, "models:/dpo-test@best")
    assert done.returncode != 0
    assert "has no version 'best'" in (done.stdout + done.stderr).replace("\n", " ")
