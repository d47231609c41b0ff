"""``inspect eval`` in its own process: our models by directory, registered name and alias."""

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


def run_inspect_eval(place: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
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


def completions(place: Path) -> list[str]:
    return [sample.output.completion for sample in log(place).samples or []]


def test_a_directory(stories: Path, tmp_path: Path) -> None:
    """With arguments of the provider, log-probabilities and several choices."""
    words = ("-M", "batch_size=2", "-M", "renderer_name=role_colon", "--logprobs", "--num-choices", "2")
    process = run_inspect_eval(tmp_path, str(stories), *words)
    assert process.returncode == 0, process.stdout + process.stderr
    eval_log = log(tmp_path)
    assert (eval_log.status, eval_log.eval.model, len(eval_log.samples or [])) == ("success", f"dpo/{stories}", 3)
    for sample in eval_log.samples or []:
        assert [choice.stop_reason for choice in sample.output.choices] == ["max_tokens"] * 2
        assert sample.output.choices[0].logprobs is not None
        assert len(sample.output.choices[0].logprobs.content) == 8


@pytest.mark.usefixtures("world")
def test_a_registered_name_and_an_alias(stories: Path, tmp_path: Path) -> None:
    """Their completions are those of the registered directory."""
    assert run_inspect_eval(tmp_path, str(stories)).returncode == 0
    expected = completions(tmp_path)
    for name in ("dpo-test", "models:/dpo-test@champion"):
        process = run_inspect_eval(tmp_path, name)
        assert process.returncode == 0, process.stdout + process.stderr
        assert completions(tmp_path) == expected
    process = run_inspect_eval(tmp_path, "models:/dpo-test@best")
    assert process.returncode != 0
    assert "has no version 'best'" in (process.stdout + process.stderr).replace("\n", " ")
